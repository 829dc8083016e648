//! What each function of a module asks of the native stack and of the compiler, and whom it calls.
//!
//! A frame is reckoned from the WebAssembly code alone, so that it comes out the same on every
//! architecture and with every compiler, and higher than any compiler makes it. A compiler keeps on
//! the stack what lives across a call and found no register: locals, operands, arguments, results,
//! and what it computed once to use it twice, or moved out of a loop. The first four are counted
//! where most of them are alive at once. For the last, each instruction that computes anything is
//! counted as if its result stayed for good. Measured against compiled frames that is three to ten
//! times too much for what compilers emit, and at least a third too much for code made to break it.

use std::collections::BTreeSet;

use wasmparser::{
    FuncValidator, Operator, OperatorsReader, Parser, ValType, ValidPayload, Validator,
    WasmModuleResources,
};

use super::engine::FEATURES;
use super::limits::MAX_MERGES;
use super::outline::Outline;

/// Return address, saved registers, and what the compiler needs for itself.
const BARE_FRAME_BYTES: u64 = 128;
/// A register of integers or references, on the stack.
const INTEGER_BYTES: u64 = 8;
/// A register of floats or vectors.
const VECTOR_BYTES: u64 = 16;

/// One function of the module's own.
#[derive(Default)]
pub(super) struct Function {
    /// The most its frame can take of the native stack.
    pub(super) frame_bytes: u64,
    /// Values that can meet where blocks begin or end: for each block the locals that are set in it.
    /// What a compiler does to give them registers grows faster than their number.
    pub(super) merges: u64,
    /// The functions that it calls by name.
    pub(super) calls: BTreeSet<u32>,
    /// The types by which it calls what stands in a table.
    pub(super) table_calls: BTreeSet<u32>,
}

/// What the code of a module comes to.
#[derive(Default)]
pub(super) struct Code {
    /// Its own functions, in order.
    pub(super) functions: Vec<Function>,
    /// Functions that code names otherwise than by calling them.
    pub(super) referenced: BTreeSet<u32>,
}

impl Code {
    /// Reads all functions of a valid module.
    pub(super) fn read(bytes: &[u8], outline: &Outline<'_>) -> wasmparser::Result<Code> {
        let mut code = Code::default();
        let mut validator = Validator::new_with_features(FEATURES);
        let mut buffers = Default::default();
        for payload in Parser::new(0).parse_all(bytes) {
            if let ValidPayload::Func(function, body) = validator.payload(&payload?)? {
                let mut types = function.into_validator(buffers);
                let mut reader = body.get_binary_reader();
                types.read_locals(&mut reader)?;
                let operators = OperatorsReader::new(reader);
                let function = code.function(&mut types, operators, outline)?;
                code.functions.push(function);
                buffers = types.into_allocations();
            }
        }
        Ok(code)
    }

    fn function<R: WasmModuleResources>(
        &mut self,
        types: &mut FuncValidator<R>,
        mut operators: OperatorsReader<'_>,
        outline: &Outline<'_>,
    ) -> wasmparser::Result<Function> {
        let mut function = Function::default();
        let (mut highest, mut widest_call, mut computed) = (0, 0, 0);
        let mut merges = Merges::default();
        while !operators.eof() {
            let offset = operators.original_position();
            let operator = operators.read()?;
            let before = top(types);
            types.op(offset, &operator)?;
            merges.see(&operator);
            highest = highest.max(types.operand_stack_height());
            let called = match operator {
                Operator::Call { function_index } => {
                    function.calls.insert(function_index);
                    outline.function_type(function_index)
                }
                Operator::CallIndirect { type_index, .. } => {
                    function.table_calls.insert(type_index);
                    outline.type_at(type_index)
                }
                Operator::RefFunc { function_index } => {
                    self.referenced.insert(function_index);
                    None
                }
                _ => None,
            };
            computed += match called {
                Some(ty) => {
                    let results = register_bytes(ty.results());
                    widest_call = widest_call.max(register_bytes(ty.params()) + results);
                    INTEGER_BYTES + results
                }
                None if leaves_nothing(&operator) => 0,
                None => before.max(top(types)),
            };
        }
        function.merges = merges.count;
        let locals = (0..types.len_locals()).filter_map(|local| types.get_local_type(local));
        let locals: u64 = locals.map(bytes_of).sum();
        let operands = u64::from(highest) * VECTOR_BYTES;
        function.frame_bytes = BARE_FRAME_BYTES + locals + operands + widest_call + computed;
        Ok(function)
    }
}

/// Counts [`Function::merges`].
#[derive(Default)]
struct Merges {
    /// For each open block the locals set in it so far.
    open: Vec<BTreeSet<u32>>,
    count: u64,
}

impl Merges {
    fn see(&mut self, operator: &Operator<'_>) {
        match operator {
            // Enough to be refused, and counting on would take as long as compiling.
            _ if self.count > MAX_MERGES => {}
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                self.open.push(BTreeSet::new());
            }
            Operator::LocalSet { local_index } | Operator::LocalTee { local_index } => {
                if let Some(innermost) = self.open.last_mut() {
                    innermost.insert(*local_index);
                }
            }
            Operator::End => {
                let Some(mut set) = self.open.pop() else { return };
                self.count += set.len() as u64;
                if let Some(around) = self.open.last_mut() {
                    // The smaller one moves into the larger one.
                    if around.len() < set.len() {
                        std::mem::swap(around, &mut set);
                    }
                    around.append(&mut set);
                }
            }
            _ => {}
        }
    }
}

/// The size of what lies on top of the operands.
fn top<R: WasmModuleResources>(types: &FuncValidator<R>) -> u64 {
    types.get_operand_type(0).flatten().map_or(INTEGER_BYTES, bytes_of)
}

fn register_bytes(types: &[ValType]) -> u64 {
    types.iter().map(|ty| bytes_of(*ty)).sum()
}

fn bytes_of(ty: ValType) -> u64 {
    match ty {
        ValType::I32 | ValType::I64 | ValType::Ref(_) => INTEGER_BYTES,
        ValType::F32 | ValType::F64 | ValType::V128 => VECTOR_BYTES,
    }
}

/// Whether an instruction computes nothing that a compiler could keep: it only names a value, or
/// only says where to go on. A constant integer is made anew wherever it is used.
fn leaves_nothing(operator: &Operator<'_>) -> bool {
    use Operator::*;
    matches!(
        operator,
        LocalGet { .. }
            | LocalSet { .. }
            | LocalTee { .. }
            | I32Const { .. }
            | I64Const { .. }
            | Nop
            | Drop
            | Unreachable
            | Block { .. }
            | Loop { .. }
            | If { .. }
            | Else
            | End
            | Br { .. }
            | BrIf { .. }
            | BrTable { .. }
            | Return
    )
}
