//! Typed machines in JSON and protocol buffers, random numbers and log lines.

use raft_kv_sdk::storage::{Map, Value};
use raft_kv_sdk::testing::TestHost;
use raft_kv_sdk::{
    Context, Failure, Json, Level, Prost, QueryContext, Typed, TypedMachine, codes, debug, error,
    info, warn,
};
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
enum Command {
    Set { name: String, age: u8 },
    Draw { below: u64 },
    Forget { name: String },
}

#[derive(Clone, PartialEq, prost::Message)]
struct Person {
    #[prost(uint32, tag = "1")]
    age: u32,
    #[prost(uint64, tag = "2")]
    since_ms: u64,
}

const PEOPLE: Map<String, Prost<Person>> = Map::new("people");

struct Register;

impl TypedMachine for Register {
    type Format = Json;
    type Command = Command;
    type Reply = Vec<u64>;
    type Query = String;
    type Answer = Option<u32>;

    fn apply(context: &Context<'_>, command: Command) -> Result<Vec<u64>, Failure> {
        match command {
            Command::Set { name, age } => {
                info!(context, "{name} is {age}");
                let person = Person { age: age.into(), since_ms: context.time_ms() };
                PEOPLE.put(context, &name, &Prost(person))?;
                Ok(Vec::new())
            }
            Command::Draw { below } => {
                let mut random = context.random();
                Ok((0..4).map(|_| random.below(below)).collect())
            }
            Command::Forget { name } => {
                error!(context, "{} is unknown", name);
                warn!(context, "a line of {name:?}");
                debug!(context, "and no more");
                Err(Failure::new(1, "nobody is forgotten"))
            }
        }
    }

    fn query(context: &QueryContext<'_>, name: String) -> Result<Option<u32>, Failure> {
        Ok(PEOPLE.get(context, &name)?.map(|Prost(person)| person.age))
    }
}

type Host = TestHost<Typed<Register>>;

#[test]
fn commands_and_replies_are_json() {
    let mut host = Host::new();
    assert_eq!(host.apply(br#" {"op": "set", "name": "ann", "age": 7} "#), Ok(b"[]".to_vec()));
    assert_eq!(host.query(br#""ann""#), Ok(b"7".to_vec()));
    assert_eq!(host.query(br#""bob""#), Ok(b"null".to_vec()));
    assert_eq!(host.ask(&"ann".to_owned()), Ok(Some(7)));
}

#[test]
fn what_does_not_parse_fails_with_the_message_of_the_parser() {
    let mut host = Host::new();
    for (command, message) in [
        (r#"{"op":"set","name":"ann"}"#, "missing field `age`"),
        (r#"{"op":"set","name":"ann","age":256}"#, "invalid value: integer `256`, expected u8"),
        (r#"{"op":"fly"}"#, "unknown variant `fly`"),
        (r#"{"op":"draw","below":2} x"#, "trailing characters"),
        ("", "EOF while parsing"),
    ] {
        let failure = host.apply(command.as_bytes()).unwrap_err();
        assert_eq!(failure.code, codes::MALFORMED);
        assert!(failure.message.contains(message), "{command}: {failure}");
    }
    assert_eq!(host.query(b"ann").unwrap_err().code, codes::MALFORMED);
    assert!(host.stored().is_empty());
}

#[test]
fn what_cannot_be_written_is_a_failure() {
    struct Odd;
    impl TypedMachine for Odd {
        type Format = Json;
        type Command = ();
        type Reply = std::collections::BTreeMap<Vec<u8>, u8>;
        type Query = ();
        type Answer = ();
        fn apply(context: &Context<'_>, (): ()) -> Result<Self::Reply, Failure> {
            context.put(b"k", b"v");
            Ok([(vec![1], 1)].into())
        }
        fn query(_: &QueryContext<'_>, (): ()) -> Result<(), Failure> {
            Ok(())
        }
    }
    let mut host = TestHost::<Typed<Odd>>::new();
    assert_eq!(host.apply(b"null").unwrap_err().code, codes::UNWRITABLE);
    assert!(host.stored().is_empty());
}

#[test]
fn protocol_buffers_are_a_format_too() {
    struct Older;
    impl TypedMachine for Older {
        type Format = Prost;
        type Command = Person;
        type Reply = Person;
        type Query = Person;
        type Answer = Person;
        fn apply(_: &Context<'_>, person: Person) -> Result<Person, Failure> {
            Ok(Person { age: person.age + 1, ..person })
        }
        fn query(_: &QueryContext<'_>, person: Person) -> Result<Person, Failure> {
            Ok(person)
        }
    }
    let mut host = TestHost::<Typed<Older>>::new();
    assert_eq!(host.apply(&[8, 41]), Ok(vec![8, 42]));
    assert_eq!(host.ask(&Person::default()), Ok(Person::default()));
    assert_eq!(host.apply(&[8]).unwrap_err().code, codes::MALFORMED);
}

#[test]
fn random_numbers_hang_on_the_command_alone() {
    let draw = |host: &mut Host| host.send(&Command::Draw { below: 1 << 40 });
    let (mut one, mut other) = (Host::new(), Host::new());
    let first = draw(&mut one);
    assert_eq!(draw(&mut other), first);
    let second = draw(&mut one);
    assert_ne!(second, first);
    assert_eq!(draw(&mut other), second);
}

#[test]
fn log_lines_have_their_level_and_text() {
    let mut host = Host::new();
    host.send(&Command::Set { name: "ann".to_owned(), age: 7 }).expect("it is set");
    host.send(&Command::Forget { name: "bob".to_owned() }).expect_err("it always fails");
    let expected = [
        (Level::Info, "ann is 7"),
        (Level::Error, "bob is unknown"),
        (Level::Warn, "a line of \"bob\""),
        (Level::Debug, "and no more"),
    ];
    assert_eq!(host.logs(), expected.map(|(level, text)| (level, text.to_owned())));
}

#[test]
fn stored_values_have_the_layout_of_their_format() {
    let mut bytes = Vec::new();
    Json(vec![1, 2]).encode_value(&mut bytes).expect("lists can be written");
    assert_eq!(bytes, b"[1,2]");
    assert!(Json::<Vec<u8>>::decode_value(b"[1,").is_err());
    assert_eq!(Prost::<Person>::decode_value(&[8, 7]).map(|Prost(person)| person.age), Ok(7));
}

#[test]
fn time_goes_on_as_told() {
    let mut host = Host::new();
    host.set_time_ms(5);
    host.advance_ms(7);
    assert_eq!(host.time_ms(), 12);
}
