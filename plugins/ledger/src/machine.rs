//! What the commands and queries of [`protocol`](crate::protocol) mean.
//!
//! # Invariants
//!
//! - The sum of all balances is the sum of all first deposits, and fits into a `u64`. So no balance can
//!   overflow when it is paid.
//! - No balance is below 0.
//! - A transfer is stored under its id if and only if it was made. One that failed may be tried again
//!   under the same id, as its writes were dropped with it.

use raft_kv_sdk::storage::{Counter, Map};
use raft_kv_sdk::{Context, Failure, Json, QueryContext, TypedMachine};

use crate::protocol::{Answer, Command, MAX_NAME_LEN, Query, Reply, Transfer, failure};

/// What each account holds.
const BALANCES: Map<String, u64> = Map::new("balances");
/// All transfers that were made, by their ids.
const TRANSFERS: Map<String, Json<Transfer>> = Map::new("transfers");
/// The sum of all first deposits.
const DEPOSITED: Counter = Counter::new("deposited");

/// The state machine.
pub struct Ledger;

impl TypedMachine for Ledger {
    type Format = Json;
    type Command = Command;
    type Reply = Reply;
    type Query = Query;
    type Answer = Answer;

    fn apply(context: &Context<'_>, command: Command) -> Result<Reply, Failure> {
        match command {
            Command::Open { account, deposit } => open(context, &account, deposit),
            Command::Transfer { id, from, to, amount } => {
                transfer(context, &id, Order { from, to, amount })
            }
        }
    }

    fn query(context: &QueryContext<'_>, query: Query) -> Result<Answer, Failure> {
        match query {
            Query::Balance { account } => {
                Ok(Answer::Balance { balance: balance(context, &account)? })
            }
            Query::Transfer { id } => {
                check_name(&id)?;
                let stored = TRANSFERS.get(context, &id)?;
                Ok(Answer::Transfer { transfer: stored.map(|Json(transfer)| transfer) })
            }
            Query::Audit => audit(context),
        }
    }
}

fn open(context: &Context<'_>, account: &str, deposit: u64) -> Result<Reply, Failure> {
    check_name(account)?;
    if BALANCES.contains(context, account)? {
        let message = format!("there is an account `{account}`");
        return Err(Failure::new(failure::ACCOUNT_EXISTS, message));
    }
    DEPOSITED.add(context, deposit)?;
    BALANCES.put(context, account, &deposit)?;
    Ok(Reply::Opened { balance: deposit })
}

/// What a transfer is to do.
struct Order {
    from: String,
    to: String,
    amount: u64,
}

impl Order {
    /// Whether `transfer` did it.
    fn is_that_of(&self, transfer: &Transfer) -> bool {
        let Transfer { from, to, amount, .. } = transfer;
        (&self.from, &self.to, &self.amount) == (from, to, amount)
    }
}

fn transfer(context: &Context<'_>, id: &str, order: Order) -> Result<Reply, Failure> {
    check_name(id)?;
    if let Some(Json(transfer)) = TRANSFERS.get(context, id)? {
        if order.is_that_of(&transfer) {
            return Ok(Reply::Transferred { repeated: true, transfer });
        }
        let message = format!("another transfer was made under the id `{id}`");
        return Err(Failure::new(failure::OTHER_TRANSFER, message));
    }
    let transfer = pay(context, order)?;
    TRANSFERS.put(context, id, &Json(transfer.clone()))?;
    Ok(Reply::Transferred { repeated: false, transfer })
}

fn pay(context: &Context<'_>, Order { from, to, amount }: Order) -> Result<Transfer, Failure> {
    if amount == 0 || from == to {
        let message = "a transfer moves at least 1 from one account to another";
        return Err(Failure::new(failure::OUT_OF_RANGE, message));
    }
    let (from_before, to_before) = (balance(context, &from)?, balance(context, &to)?);
    let from_balance = from_before.checked_sub(amount).ok_or_else(|| {
        let message = format!("the account `{from}` holds {from_before}, less than {amount}");
        Failure::new(failure::OVERDRAFT, message)
    })?;
    let to_balance = to_before.checked_add(amount).expect("no balance is above the sum of all");
    BALANCES.put(context, &from, &from_balance)?;
    BALANCES.put(context, &to, &to_balance)?;
    Ok(Transfer { from, to, amount, time_ms: context.time_ms(), from_balance, to_balance })
}

fn balance(context: &QueryContext<'_>, account: &str) -> Result<u64, Failure> {
    check_name(account)?;
    let balance = BALANCES.get(context, account)?;
    balance.ok_or_else(|| {
        Failure::new(failure::NO_ACCOUNT, format!("there is no account `{account}`"))
    })
}

fn audit(context: &QueryContext<'_>) -> Result<Answer, Failure> {
    let (mut accounts, mut sum) = (0, 0_u64);
    for entry in BALANCES.scan(context) {
        let (_, balance) = entry?;
        accounts += 1;
        sum = sum.checked_add(balance).expect("the sum of all balances fits");
    }
    Ok(Answer::Audit { accounts, sum, deposited: DEPOSITED.get(context)? })
}

fn check_name(name: &str) -> Result<(), Failure> {
    if (1..=MAX_NAME_LEN).contains(&name.len()) {
        return Ok(());
    }
    let message = format!("a name has {} bytes, must have 1 to {MAX_NAME_LEN}", name.len());
    Err(Failure::new(failure::OUT_OF_RANGE, message))
}
