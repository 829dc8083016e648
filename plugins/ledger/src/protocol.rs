//! Commands, queries and what they answer, as JSON. Amounts are whole numbers of the smallest unit,
//! such as cents; times are milliseconds since 1970-01-01 UTC.

use serde::{Deserialize, Serialize};

/// What changes the ledger. In JSON, `{"op": "open", …}` or `{"op": "transfer", …}`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Opens an account. This is how money gets into the ledger.
    Open {
        /// The account's name.
        account: String,
        /// What it holds at first; 0 unless given.
        #[serde(default)]
        deposit: u64,
    },
    /// Moves money from one account to another.
    Transfer {
        /// The caller's name for this transfer. Sent again, the same transfer is not made again.
        id: String,
        /// Who pays.
        from: String,
        /// Who is paid.
        to: String,
        /// How much, at least 1.
        amount: u64,
    },
}

/// A transfer that was made.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Transfer {
    /// Who paid.
    pub from: String,
    /// Who was paid.
    pub to: String,
    /// How much.
    pub amount: u64,
    /// When.
    pub time_ms: u64,
    /// What the paying account held afterwards.
    pub from_balance: u64,
    /// What the paid account held afterwards.
    pub to_balance: u64,
}

/// What a command answers.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Reply {
    /// To `transfer`.
    Transferred {
        /// Whether it had been made before; nothing happened this time.
        repeated: bool,
        /// The transfer as it was made, then or now.
        transfer: Transfer,
    },
    /// To `open`.
    Opened {
        /// What the account holds.
        balance: u64,
    },
}

/// What is asked. In JSON, `{"op": "balance", …}` and so on.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// What an account holds.
    Balance {
        /// The account's name.
        account: String,
    },
    /// A transfer by its id.
    Transfer {
        /// The caller's name for it.
        id: String,
    },
    /// Adds all balances up.
    Audit,
}

/// What a query answers.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Answer {
    /// To `audit`.
    Audit {
        /// How many accounts there are.
        accounts: u64,
        /// The sum of their balances.
        sum: u64,
        /// The sum of all first deposits; the same number, or something is wrong.
        deposited: u64,
    },
    /// To `balance`.
    Balance {
        /// What the account holds.
        balance: u64,
    },
    /// To `transfer`.
    Transfer {
        /// The transfer; `null` if none of this id was made.
        transfer: Option<Transfer>,
    },
}

/// The codes that commands and queries fail with, beside those of the SDK.
pub mod failure {
    /// There is no account of this name.
    pub const NO_ACCOUNT: u32 = 1;
    /// There is an account of this name.
    pub const ACCOUNT_EXISTS: u32 = 2;
    /// The paying account holds less than the amount.
    pub const OVERDRAFT: u32 = 3;
    /// Another transfer was made under this id.
    pub const OTHER_TRANSFER: u32 = 4;
    /// A name is empty or too long, the amount is 0, or an account would pay itself.
    pub const OUT_OF_RANGE: u32 = 5;
}

/// The longest name of an account or id of a transfer, in bytes.
pub const MAX_NAME_LEN: usize = 1_024;
