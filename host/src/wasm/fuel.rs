//! What everything costs, in units of fuel.
//!
//! The table is ours, operator by operator, so that an upgrade of wasmtime cannot change which
//! commands run out of fuel. It does not compile against a parser with operators that it has not
//! seen, because [`OperatorCost`] then has other fields.

use wasmtime::{Caller, OperatorCost, VariableOperatorCost};

use super::error::{FailureKind, Stop};
use super::state::GuestState;

/// Any host call.
pub(super) const CALL: u64 = 50;
/// `get`, each key of `get_many`, each row of a scan: a look into the storage.
pub(super) const READ: u64 = 200;
/// `scan_open`: an iterator that finds its place in every level of the storage.
pub(super) const SEEK: u64 = 2000;
/// `scan_open`, for each row in its range that the command itself has written.
pub(super) const COPY: u64 = 20;
/// `put` and `delete`: a write that all replicas store.
pub(super) const WRITE: u64 = 400;
/// As many bytes are moved for one unit.
const BYTES_PER_UNIT: u64 = 8;

/// The cost of moving `bytes` between plugin and host, rounded down.
pub(super) fn moved(bytes: usize) -> u64 {
    bytes as u64 / BYTES_PER_UNIT
}

/// Takes `cost` off the running command's fuel, or stops it.
pub(super) fn charge(caller: &mut Caller<'_, GuestState>, cost: u64) -> wasmtime::Result<()> {
    let left = pay(caller.get_fuel()?, cost, caller.data())?;
    caller.set_fuel(left)
}

/// What is left of `fuel` after `cost`, unless the command has to stop for want of it.
pub(super) fn pay(fuel: u64, cost: u64, state: &GuestState) -> wasmtime::Result<u64> {
    fuel.checked_sub(cost).ok_or_else(|| exhausted(state.fuel_per_command))
}

/// The failure of a command that used up `limit`.
pub(super) fn exhausted(limit: u64) -> wasmtime::Error {
    Stop::plugin(FailureKind::OutOfFuel, exhausted_message(limit))
}

/// Its words, which are recorded.
pub(super) fn exhausted_message(limit: u64) -> String {
    format!("the command needs more than its {limit} units of fuel")
}

/// Free: what generates no code of its own. Everything else costs 1.
macro_rules! cost_of {
    (Nop) => {
        0
    };
    (Drop) => {
        0
    };
    (Block) => {
        0
    };
    (Loop) => {
        0
    };
    (Else) => {
        0
    };
    (End) => {
        0
    };
    ($operator:ident) => {
        1
    };
}

macro_rules! operator_table {
    ($(@$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*))*) => {
        /// The cost of every operator. Calling a function costs 1 more, for entering it.
        pub(super) fn operator_cost() -> OperatorCost {
            OperatorCost { $($op: cost_of!($op),)* variable: variable_cost() }
        }
    };
}

wasmparser::for_each_operator!(operator_table);

/// The part of an operator's cost that its operands decide.
fn variable_cost() -> VariableOperatorCost {
    VariableOperatorCost {
        memory_copy_per_byte: 1,
        memory_fill_per_byte: 1,
        memory_init_per_byte: 1,
        // The kernel zeroes 64 KiB, some 10 µs with the page faults.
        memory_grow_per_page: 255,
        table_copy_per_element: 1,
        table_fill_per_element: 1,
        table_init_per_element: 1,
        table_grow_per_element: 1,
        // Garbage collection is off; these cannot occur.
        array_copy_per_element: 1,
        array_fill_per_element: 1,
        array_new_data_per_element: 1,
        array_init_data_per_element: 1,
        array_new_elem_per_element: 1,
        array_init_elem_per_element: 1,
        array_new_default_per_element: 1,
        array_new_per_element: 1,
    }
}
