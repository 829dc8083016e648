//! The collections in storage, against models of the standard library, and their layouts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft_kv_sdk::storage::{Counter, Index, Map, Queue};
use raft_kv_sdk::testing::TestHost;
use raft_kv_sdk::{
    Context, Failure, Json, MAX_KEY_LEN, MAX_VALUE_LEN, QueryContext, Random, Typed, TypedMachine,
    codes,
};
use serde::{Deserialize, Serialize};

const MAP: Map<String, String> = Map::new("a");
const PAIRS: Map<(u8, String), u32> = Map::new("pairs");
const INDEX: Index<i64, String> = Index::new("a");
const QUEUE: Queue<String> = Queue::new("a");
const COUNTER: Counter = Counter::new("a");
/// A name that begins with that of another map.
const NEIGHBOUR: Map<String, String> = Map::new("ab");

#[derive(Clone, Debug, Deserialize, Serialize)]
enum Do {
    Put(String, String),
    Remove(String),
    PutPair(u8, String, u32),
    Insert(i64, String),
    Take(i64, String),
    Push(String),
    Pop,
    Add(u64),
    Subtract(u64),
    PutLongValue,
}

#[derive(Debug, Deserialize, Serialize)]
enum Ask {
    Get(String),
    Contains(String),
    Map,
    /// By the first element of the pairs: `from`, `above`, `below`, `up to` or `at`.
    Pairs(String, u8),
    PairsAfter(u8, String),
    Index,
    IndexUpTo(i64),
    Has(i64, String),
    Peek,
    Len,
    Count,
}

/// A machine that does as it is told and answers in words.
struct Told;

impl TypedMachine for Told {
    type Format = Json;
    type Command = Do;
    type Reply = String;
    type Query = Ask;
    type Answer = Vec<String>;

    fn apply(context: &Context<'_>, command: Do) -> Result<String, Failure> {
        match command {
            Do::Put(key, value) => MAP.put(context, &key, &value)?,
            Do::Remove(key) => MAP.remove(context, &key)?,
            Do::PutPair(first, second, value) => PAIRS.put(context, &(first, second), &value)?,
            Do::Insert(key, item) => INDEX.insert(context, &key, &item)?,
            Do::Take(key, item) => INDEX.remove(context, &key, &item)?,
            Do::Push(item) => QUEUE.push(context, &item)?,
            Do::Pop => return Ok(QUEUE.pop(context)?.unwrap_or_else(|| "none".to_owned())),
            Do::Add(amount) => return Ok(COUNTER.add(context, amount)?.to_string()),
            Do::Subtract(amount) => return Ok(COUNTER.subtract(context, amount)?.to_string()),
            Do::PutLongValue => MAP.put(context, "long", &"x".repeat(MAX_VALUE_LEN + 1))?,
        }
        Ok(String::new())
    }

    fn query(context: &QueryContext<'_>, query: Ask) -> Result<Vec<String>, Failure> {
        Ok(match query {
            Ask::Get(key) => MAP.get(context, key.as_str())?.into_iter().collect(),
            Ask::Contains(key) => vec![MAP.contains(context, &key)?.to_string()],
            Ask::Map => rows(MAP.scan(context).into_iter().map(|row| row.map(join)))?,
            Ask::Pairs(limit, first) => {
                let scan = PAIRS.scan(context);
                let scan = match limit.as_str() {
                    "from" => scan.from(&first),
                    "above" => scan.above(&first),
                    "below" => scan.below(&first),
                    "up to" => scan.up_to(&first),
                    _ => scan.at(&first),
                };
                rows(scan.keys().map(|key| key.map(join)))?
            }
            Ask::PairsAfter(first, second) => {
                rows(PAIRS.scan(context).after(&(first, second)).keys().map(|key| key.map(join)))?
            }
            Ask::Index => rows(INDEX.scan(context).keys().map(|pair| pair.map(join)))?,
            Ask::IndexUpTo(key) => {
                let scan = INDEX.scan(context).up_to(&key).reverse();
                rows(scan.keys().map(|pair| pair.map(join)))?
            }
            Ask::Has(key, item) => vec![INDEX.contains(context, &key, &item)?.to_string()],
            Ask::Peek => QUEUE.peek(context)?.into_iter().collect(),
            Ask::Len => vec![QUEUE.len(context)?.to_string()],
            Ask::Count => vec![COUNTER.get(context)?.to_string()],
        })
    }
}

fn join((left, right): (impl ToString, impl ToString)) -> String {
    format!("{}={}", left.to_string(), right.to_string())
}

fn rows(rows: impl Iterator<Item = Result<String, Failure>>) -> Result<Vec<String>, Failure> {
    rows.collect()
}

type Host = TestHost<Typed<Told>>;

fn tell(host: &mut Host, command: Do) -> String {
    host.send(&command).expect("the command succeeds")
}

fn ask(host: &mut Host, query: Ask) -> Vec<String> {
    host.ask(&query).expect("the query succeeds")
}

/// A word of up to two letters, zero bytes among them.
fn word(random: &mut Random) -> String {
    (0..random.below(3)).map(|_| ['a', 'b', '\0', '\u{1}'][random.below(4) as usize]).collect()
}

#[test]
fn a_map_does_what_a_sorted_map_does() {
    let mut random = Random::from_seed([1; 32]);
    let mut host = Host::new();
    let mut model = BTreeMap::new();
    for step in 0..1_000 {
        let key = word(&mut random);
        if random.below(3) == 0 {
            tell(&mut host, Do::Remove(key.clone()));
            model.remove(&key);
        } else {
            tell(&mut host, Do::Put(key.clone(), step.to_string()));
            model.insert(key.clone(), step.to_string());
        }
        let other = word(&mut random);
        let expected: Vec<String> = model.get(&other).cloned().into_iter().collect();
        assert_eq!(ask(&mut host, Ask::Get(other.clone())), expected);
        let expected = model.contains_key(&other).to_string();
        assert_eq!(ask(&mut host, Ask::Contains(other)), [expected]);
        assert_eq!(ask(&mut host, Ask::Map), model.iter().map(join).collect::<Vec<_>>());
    }
}

#[test]
fn an_index_does_what_a_sorted_set_of_pairs_does() {
    let mut random = Random::from_seed([2; 32]);
    let mut host = Host::new();
    let mut model = BTreeSet::new();
    for _ in 0..1_000 {
        let pair = (random.below(5) as i64 - 2, word(&mut random));
        if random.below(3) == 0 {
            tell(&mut host, Do::Take(pair.0, pair.1.clone()));
            model.remove(&pair);
        } else {
            tell(&mut host, Do::Insert(pair.0, pair.1.clone()));
            model.insert(pair.clone());
        }
        let other = (random.below(5) as i64 - 2, word(&mut random));
        let expected = model.contains(&other).to_string();
        assert_eq!(ask(&mut host, Ask::Has(other.0, other.1)), [expected]);
        let all: Vec<String> = model.iter().cloned().map(join).collect();
        assert_eq!(ask(&mut host, Ask::Index), all);
        let limit = random.below(5) as i64 - 2;
        let within = model.iter().rev().filter(|(key, _)| *key <= limit).cloned();
        assert_eq!(ask(&mut host, Ask::IndexUpTo(limit)), within.map(join).collect::<Vec<_>>());
    }
}

#[test]
fn a_queue_does_what_a_queue_does() {
    let mut random = Random::from_seed([3; 32]);
    let mut host = Host::new();
    let mut model = VecDeque::new();
    for step in 0..1_000 {
        if random.below(2) == 0 {
            tell(&mut host, Do::Push(step.to_string()));
            model.push_back(step.to_string());
        } else {
            let expected = model.pop_front().unwrap_or_else(|| "none".to_owned());
            assert_eq!(tell(&mut host, Do::Pop), expected);
        }
        assert_eq!(ask(&mut host, Ask::Len), [model.len().to_string()]);
        assert_eq!(
            ask(&mut host, Ask::Peek),
            model.front().cloned().into_iter().collect::<Vec<_>>()
        );
        assert_eq!(host.stored().len(), model.len() + 1, "what was taken out is gone");
    }
}

#[test]
fn a_counter_keeps_within_its_range() {
    let mut host = Host::new();
    assert_eq!(ask(&mut host, Ask::Count), ["0"]);
    assert_eq!(tell(&mut host, Do::Add(5)), "5");
    assert_eq!(tell(&mut host, Do::Subtract(2)), "3");
    for command in [Do::Subtract(4), Do::Add(u64::MAX)] {
        assert_eq!(host.send(&command).unwrap_err().code, codes::OVERFLOW);
    }
    assert_eq!(ask(&mut host, Ask::Count), ["3"]);
}

#[test]
fn the_limits_of_a_scan_compare_the_first_element() {
    let mut host = Host::new();
    for (first, second) in [(1, "a"), (2, ""), (2, "b"), (255, "")] {
        tell(&mut host, Do::PutPair(first, second.to_owned(), 0));
    }
    for (limit, expected) in [
        ("from", ["2=", "2=b", "255="].as_slice()),
        ("above", &["255="]),
        ("below", &["1=a"]),
        ("up to", &["1=a", "2=", "2=b"]),
        ("at", &["2=", "2=b"]),
    ] {
        assert_eq!(ask(&mut host, Ask::Pairs(limit.to_owned(), 2)), expected, "{limit}");
    }
    assert_eq!(ask(&mut host, Ask::Pairs("up to".to_owned(), 255)).len(), 4);
    assert_eq!(ask(&mut host, Ask::PairsAfter(2, String::new())), ["2=b", "255="]);
    assert_eq!(ask(&mut host, Ask::PairsAfter(2, "a".to_owned())), ["2=b", "255="]);
}

#[test]
fn the_layouts_are_those_that_are_documented() {
    let mut host = Host::new();
    tell(&mut host, Do::Put("k\0".to_owned(), "v".to_owned()));
    tell(&mut host, Do::PutPair(7, "x".to_owned(), 258));
    tell(&mut host, Do::Insert(-1, "i".to_owned()));
    tell(&mut host, Do::Push("first".to_owned()));
    tell(&mut host, Do::Push("second".to_owned()));
    tell(&mut host, Do::Pop);
    tell(&mut host, Do::Add(3));
    let row = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
    let expected = BTreeMap::from([
        row(b"\x01a\0\x01k\0\xff\0\x01", b"v"),
        row(b"\x01pairs\0\x01\x07x\0\x01", b"\0\0\x01\x02"),
        row(b"\x02a\0\x01", b"\0\0\0\0\0\0\0\x03"),
        row(b"\x03a\0\x01\x7f\xff\xff\xff\xff\xff\xff\xffi\0\x01", b""),
        row(b"\x04a\0\x01", b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02"),
        row(b"\x04a\0\x01\0\0\0\0\0\0\0\x01", b"second"),
    ]);
    assert_eq!(*host.stored(), expected);
}

#[test]
fn collections_do_not_see_each_other() {
    struct Both;
    impl TypedMachine for Both {
        type Format = Json;
        type Command = ();
        type Reply = ();
        type Query = ();
        type Answer = (usize, usize);
        fn apply(context: &Context<'_>, (): ()) -> Result<(), Failure> {
            MAP.put(context, "k", &"1".to_owned())?;
            NEIGHBOUR.put(context, "k", &"2".to_owned())?;
            context.put(b"a raw key", b"");
            INDEX.insert(context, &0, "k")
        }
        fn query(context: &QueryContext<'_>, (): ()) -> Result<(usize, usize), Failure> {
            Ok((MAP.scan(context).keys().count(), NEIGHBOUR.scan(context).keys().count()))
        }
    }
    let mut host = TestHost::<Typed<Both>>::new();
    host.send(&()).expect("it succeeds");
    assert_eq!(host.ask(&()), Ok((1, 1)));
}

#[test]
fn what_is_too_long_is_a_failure() {
    let mut host = Host::new();
    let long = "k".repeat(MAX_KEY_LEN);
    for result in [
        host.send(&Do::Put(long.clone(), String::new())).map(|_| ()),
        host.send(&Do::PutLongValue).map(|_| ()),
        host.ask(&Ask::Get(long.clone())).map(|_| ()),
        host.ask(&Ask::PairsAfter(0, long)).map(|_| ()),
    ] {
        assert_eq!(result.unwrap_err().code, codes::TOO_LONG);
    }
}

#[test]
fn what_somebody_else_wrote_is_a_failure() {
    for (key, value, query) in [
        (b"\x01a\0\x01k\0\x01".as_slice(), b"\xff".as_slice(), Ask::Get("k".to_owned())),
        (b"\x01a\0\x01k", b"", Ask::Map),
        (b"\x01a\0\x01k\0\x01more", b"", Ask::Map),
        (b"\x02a\0\x01", b"7", Ask::Count),
        (b"\x04a\0\x01", b"\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01", Ask::Len),
        (b"\x04a\0\x01", b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02", Ask::Peek),
    ] {
        let mut host = Host::new();
        host.stored().insert(key.to_vec(), value.to_vec());
        assert_eq!(host.ask(&query).unwrap_err().code, codes::UNREADABLE, "{query:?}");
    }
}
