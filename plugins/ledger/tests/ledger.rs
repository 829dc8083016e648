//! What the ledger promises, without a node.

use std::collections::BTreeMap;

use raft_kv_plugin_ledger::Ledger;
use raft_kv_plugin_ledger::protocol::{
    Answer, Command, MAX_NAME_LEN, Query, Reply, Transfer, failure,
};
use raft_kv_sdk::testing::TestHost;
use raft_kv_sdk::{Failure, Random, Typed, codes};

type Host = TestHost<Typed<Ledger>>;

fn open(host: &mut Host, account: &str, deposit: u64) -> Result<(), Failure> {
    let reply = host.send(&Command::Open { account: account.to_owned(), deposit })?;
    assert_eq!(reply, Reply::Opened { balance: deposit });
    Ok(())
}

/// A ledger of these accounts.
fn ledger(accounts: &[(&str, u64)]) -> Host {
    let mut host = Host::new();
    for (account, deposit) in accounts {
        open(&mut host, account, *deposit).expect("the account is new");
    }
    host
}

fn order(id: &str, (from, to): (&str, &str), amount: u64) -> Command {
    Command::Transfer { id: id.to_owned(), from: from.to_owned(), to: to.to_owned(), amount }
}

/// Makes a transfer and says whether it had been made before.
fn transfer(
    host: &mut Host,
    id: &str,
    accounts: (&str, &str),
    amount: u64,
) -> Result<bool, Failure> {
    match host.send(&order(id, accounts, amount))? {
        Reply::Transferred { repeated, .. } => Ok(repeated),
        other => panic!("{other:?}"),
    }
}

fn balance(host: &mut Host, account: &str) -> u64 {
    match host.ask(&Query::Balance { account: account.to_owned() }) {
        Ok(Answer::Balance { balance }) => balance,
        other => panic!("{other:?}"),
    }
}

fn audit(host: &mut Host) -> (u64, u64, u64) {
    match host.ask(&Query::Audit) {
        Ok(Answer::Audit { accounts, sum, deposited }) => (accounts, sum, deposited),
        other => panic!("{other:?}"),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> u32 {
    result.expect_err("it is refused").code
}

#[test]
fn a_transfer_moves_money_and_makes_none() {
    let mut host = ledger(&[("ann", 100), ("bob", 5)]);
    host.set_time_ms(7);
    assert_eq!(transfer(&mut host, "t1", ("ann", "bob"), 30), Ok(false));
    assert_eq!((balance(&mut host, "ann"), balance(&mut host, "bob")), (70, 35));
    assert_eq!(audit(&mut host), (2, 105, 105));
    let made = Transfer {
        from: "ann".to_owned(),
        to: "bob".to_owned(),
        amount: 30,
        time_ms: 7,
        from_balance: 70,
        to_balance: 35,
    };
    let asked = host.ask(&Query::Transfer { id: "t1".to_owned() });
    assert_eq!(asked, Ok(Answer::Transfer { transfer: Some(made) }));
    let asked = host.ask(&Query::Transfer { id: "t2".to_owned() });
    assert_eq!(asked, Ok(Answer::Transfer { transfer: None }));
}

#[test]
fn a_transfer_that_is_sent_again_is_made_once() {
    let mut host = ledger(&[("ann", 100), ("bob", 0)]);
    let first = host.send(&order("t1", ("ann", "bob"), 30)).expect("there is enough");
    transfer(&mut host, "t2", ("ann", "bob"), 60).expect("there is enough");
    host.advance_ms(1_000);
    let again = host.send(&order("t1", ("ann", "bob"), 30)).expect("it was made");
    let (
        Reply::Transferred { transfer: first, .. },
        Reply::Transferred { repeated, transfer: again },
    ) = (first, again)
    else {
        panic!("the reply to another command");
    };
    assert!(repeated);
    assert_eq!(again, first, "the answer is that of the first time");
    assert_eq!((balance(&mut host, "ann"), balance(&mut host, "bob")), (10, 90));
}

#[test]
fn an_id_belongs_to_one_transfer() {
    let mut host = ledger(&[("ann", 100), ("bob", 100)]);
    transfer(&mut host, "t1", ("ann", "bob"), 30).expect("there is enough");
    assert_eq!(code(transfer(&mut host, "t1", ("ann", "bob"), 31)), failure::OTHER_TRANSFER);
    assert_eq!(code(transfer(&mut host, "t1", ("bob", "ann"), 30)), failure::OTHER_TRANSFER);
    assert_eq!(balance(&mut host, "ann"), 70);
}

#[test]
fn no_account_is_overdrawn_and_a_failed_transfer_can_be_tried_again() {
    let mut host = ledger(&[("ann", 10), ("bob", 5)]);
    let refused = transfer(&mut host, "t1", ("ann", "bob"), 11).unwrap_err();
    let message = "the account `ann` holds 10, less than 11";
    assert_eq!(refused, Failure::new(failure::OVERDRAFT, message));
    transfer(&mut host, "t2", ("bob", "ann"), 1).expect("there is enough");
    assert_eq!(transfer(&mut host, "t1", ("ann", "bob"), 11), Ok(false));
    assert_eq!((balance(&mut host, "ann"), balance(&mut host, "bob")), (0, 15));
}

#[test]
fn accounts_are_opened_once_and_do_not_come_of_themselves() {
    let mut host = ledger(&[("ann", 10)]);
    assert_eq!(code(open(&mut host, "ann", 5)), failure::ACCOUNT_EXISTS);
    assert_eq!(code(transfer(&mut host, "t1", ("ann", "bob"), 1)), failure::NO_ACCOUNT);
    assert_eq!(code(transfer(&mut host, "t1", ("bob", "ann"), 1)), failure::NO_ACCOUNT);
    assert_eq!(code(host.ask(&Query::Balance { account: "bob".to_owned() })), failure::NO_ACCOUNT);
    assert_eq!(audit(&mut host), (1, 10, 10));
}

#[test]
fn the_sum_of_all_deposits_has_a_limit() {
    let mut host = ledger(&[("ann", u64::MAX - 1), ("bob", 1)]);
    assert_eq!(code(open(&mut host, "cid", 1)), codes::OVERFLOW);
    transfer(&mut host, "t1", ("bob", "ann"), 1).expect("no balance overflows");
    assert_eq!(audit(&mut host), (2, u64::MAX, u64::MAX));
}

#[test]
fn what_is_out_of_range_is_refused() {
    let mut host = ledger(&[("ann", 10), ("bob", 10)]);
    let before = host.stored().clone();
    let long = "n".repeat(MAX_NAME_LEN + 1);
    for command in [
        order("t1", ("ann", "bob"), 0),
        order("t1", ("ann", "ann"), 1),
        order("", ("ann", "bob"), 1),
        order(&long, ("ann", "bob"), 1),
        order("t1", (&long, "bob"), 1),
        order("t1", ("ann", ""), 1),
        Command::Open { account: String::new(), deposit: 1 },
        Command::Open { account: long.clone(), deposit: 1 },
    ] {
        assert_eq!(code(host.send(&command)), failure::OUT_OF_RANGE, "{command:?}");
    }
    assert_eq!(*host.stored(), before);
}

#[test]
fn a_person_can_type_it() {
    let mut host = Host::new();
    assert_eq!(
        host.apply(br#"{"op": "open", "account": "ann", "deposit": 100}"#),
        Ok(br#"{"balance":100}"#.to_vec())
    );
    assert_eq!(
        host.apply(br#"{"op": "open", "account": "bob"}"#),
        Ok(br#"{"balance":0}"#.to_vec())
    );
    let order = br#"{"op": "transfer", "id": "t1", "from": "ann", "to": "bob", "amount": 30}"#;
    let reply = String::from_utf8(host.apply(order).expect("there is enough"));
    let expected = r#"{"repeated":false,"transfer":{"from":"ann","to":"bob","amount":30,"#;
    assert!(reply.expect("JSON is text").starts_with(expected));
    for amount in ["-1", "1.5", "\"1\"", "18446744073709551616"] {
        let order =
            format!(r#"{{"op":"transfer","id":"t","from":"ann","to":"bob","amount":{amount}}}"#);
        assert_eq!(code(host.apply(order.as_bytes())), codes::MALFORMED, "{amount}");
    }
    let expected = br#"{"accounts":2,"sum":100,"deposited":100}"#;
    assert_eq!(host.query(br#"{"op": "audit"}"#), Ok(expected.to_vec()));
}

/// Any transfers at all, many of them repeated or impossible, several in one log entry: the sum never
/// changes, and each account holds what a model says.
#[test]
fn the_sum_never_changes_and_no_transfer_is_made_twice() {
    let names = ["ann", "bob", "cid", "dot"];
    for seed in 0..20 {
        let mut random = Random::from_seed([seed; 32]);
        let mut host = ledger(&names.map(|name| (name, 50)));
        let mut model = BTreeMap::from(names.map(|name| (name.to_owned(), 50_u64)));
        let mut made = BTreeMap::<String, Command>::new();
        for _ in 0..100 {
            let orders: Vec<Command> =
                (0..random.below(4)).map(|_| any_order(&mut random)).collect();
            let commands: Vec<Vec<u8>> = orders.iter().map(json).collect();
            let results = host.apply_entry(&commands);
            for (order, result) in orders.into_iter().zip(results) {
                let expected = expect(&mut model, &mut made, &order);
                assert_eq!(result.is_ok(), expected, "{order:?}: {result:?}");
            }
            assert_eq!(audit(&mut host), (4, 200, 200));
            for (name, expected) in &model {
                assert_eq!(balance(&mut host, name), *expected);
            }
        }
    }
}

fn any_order(random: &mut Random) -> Command {
    let mut name = || ["ann", "bob", "cid", "dot", "eve"][random.below(5) as usize];
    let accounts = (name(), name());
    let id = random.below(60).to_string();
    order(&id, accounts, random.below(40))
}

fn json(order: &Command) -> Vec<u8> {
    let Command::Transfer { id, from, to, amount } = order else {
        panic!("all orders are transfers");
    };
    format!(r#"{{"op":"transfer","id":"{id}","from":"{from}","to":"{to}","amount":{amount}}}"#)
        .into()
}

/// Does to the model what `order` asks, and says whether it is to succeed.
fn expect(
    model: &mut BTreeMap<String, u64>,
    made: &mut BTreeMap<String, Command>,
    order: &Command,
) -> bool {
    let Command::Transfer { id, from, to, amount } = order else {
        panic!("all orders are transfers");
    };
    if let Some(before) = made.get(id) {
        return before == order;
    }
    let known = model.contains_key(from) && model.contains_key(to) && from != to;
    if !known || *amount == 0 || model[from] < *amount {
        return false;
    }
    *model.get_mut(from).expect("it is known") -= amount;
    *model.get_mut(to).expect("it is known") += amount;
    made.insert(id.clone(), order.clone());
    true
}
