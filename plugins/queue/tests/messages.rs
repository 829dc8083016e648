//! What the queue promises, without a node.

use std::collections::BTreeMap;

use raft_kv_plugin_queue::Messages;
use raft_kv_plugin_queue::protocol::{
    Command, MAX_BODY_LEN, MAX_RECEIVED, MAX_VISIBILITY_MS, Message, Query, Reply, Status, failure,
};
use raft_kv_sdk::testing::TestHost;
use raft_kv_sdk::{Failure, Random, Typed, codes};

type Host = TestHost<Typed<Messages>>;

fn send_later(host: &mut Host, body: &str, delay_ms: u64) -> u64 {
    match host.send(&Command::Send { body: body.to_owned(), delay_ms }) {
        Ok(Reply::Done { id }) => id,
        other => panic!("{other:?}"),
    }
}

fn send(host: &mut Host, body: &str) -> u64 {
    send_later(host, body, 0)
}

fn receive(host: &mut Host, visibility_ms: u64, max: usize) -> Vec<Message> {
    match host.send(&Command::Receive { visibility_ms, max }) {
        Ok(Reply::Received { messages }) => messages,
        other => panic!("{other:?}"),
    }
}

fn ids(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(|message| message.id).collect()
}

fn ack(host: &mut Host, id: u64, delivery: u32) -> Result<(), Failure> {
    let reply = host.send(&Command::Ack { id, delivery })?;
    assert_eq!(reply, Reply::Done { id });
    Ok(())
}

fn extend(host: &mut Host, id: u64, delivery: u32, visibility_ms: u64) -> Result<u64, Failure> {
    match host.send(&Command::Extend { id, delivery, visibility_ms })? {
        Reply::Extended { deadline_ms } => Ok(deadline_ms),
        other => panic!("{other:?}"),
    }
}

fn status(host: &mut Host) -> Status {
    host.ask(&Query::Status).expect("one can ask")
}

fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> u32 {
    result.expect_err("it is refused").code
}

#[test]
fn messages_come_in_the_order_they_were_sent_in() {
    let mut host = Host::new();
    let sent: Vec<u64> = ["a", "b", "c"].map(|body| send(&mut host, body)).into();
    assert_eq!(sent, [1, 2, 3]);
    let first = receive(&mut host, 10, 1);
    let expected = Message { id: 1, delivery: 1, deadline_ms: 10, body: "a".to_owned() };
    assert_eq!(first, [expected]);
    assert_eq!(ids(&receive(&mut host, 10, 5)), [2, 3]);
    assert_eq!(receive(&mut host, 10, 5), []);
}

#[test]
fn a_message_is_hidden_until_its_deadline_and_then_comes_again() {
    let mut host = Host::new();
    send(&mut host, "a");
    receive(&mut host, 100, 1);
    host.advance_ms(99);
    assert_eq!(receive(&mut host, 100, 1), []);
    host.advance_ms(1);
    let again = receive(&mut host, 100, 1);
    let expected = Message { id: 1, delivery: 2, deadline_ms: 200, body: "a".to_owned() };
    assert_eq!(again, [expected]);
}

#[test]
fn an_acknowledged_message_never_comes_again_and_leaves_nothing_behind() {
    let mut host = Host::new();
    send(&mut host, "a");
    receive(&mut host, 100, 1);
    ack(&mut host, 1, 1).expect("it was received");
    host.advance_ms(1_000);
    assert_eq!(receive(&mut host, 100, 1), []);
    assert_eq!(code(ack(&mut host, 1, 1)), failure::NO_MESSAGE);
    assert_eq!(host.stored().len(), 2, "the two counters");
    assert_eq!(status(&mut host), Status { messages: 0, next_ms: None, now_ms: 1_000 });
}

#[test]
fn only_the_latest_delivery_counts() {
    let mut host = Host::new();
    send(&mut host, "a");
    assert_eq!(code(ack(&mut host, 1, 0)), failure::OTHER_DELIVERY, "it was never received");
    receive(&mut host, 10, 1);
    host.advance_ms(10);
    receive(&mut host, 10, 1);
    assert_eq!(code(ack(&mut host, 1, 1)), failure::OTHER_DELIVERY);
    assert_eq!(code(extend(&mut host, 1, 1, 5)), failure::OTHER_DELIVERY);
    host.advance_ms(10);
    ack(&mut host, 1, 2).expect("late, but nobody else received it");
    assert_eq!(code(extend(&mut host, 1, 2, 5)), failure::NO_MESSAGE);
}

#[test]
fn a_deadline_can_be_put_off_or_given_up() {
    let mut host = Host::new();
    send(&mut host, "a");
    receive(&mut host, 10, 1);
    host.advance_ms(5);
    assert_eq!(extend(&mut host, 1, 1, 20), Ok(25));
    host.advance_ms(19);
    assert_eq!(receive(&mut host, 10, 1), []);
    assert_eq!(extend(&mut host, 1, 1, 0), Ok(24));
    assert_eq!(receive(&mut host, 10, 1)[0].delivery, 2);
}

#[test]
fn a_delayed_message_comes_after_its_delay() {
    let mut host = Host::new();
    send_later(&mut host, "later", 50);
    send(&mut host, "now");
    assert_eq!(ids(&receive(&mut host, 1_000, 5)), [2]);
    let expected = Status { messages: 2, next_ms: Some(50), now_ms: 0 };
    assert_eq!(status(&mut host), expected);
    host.advance_ms(50);
    assert_eq!(ids(&receive(&mut host, 1_000, 5)), [1]);
}

#[test]
fn a_person_can_type_it() {
    let mut host = Host::new();
    assert_eq!(host.apply(br#"{"op": "send", "body": "hi"}"#), Ok(br#"{"id":1}"#.to_vec()));
    assert_eq!(
        host.apply(br#"{"op": "receive", "visibility_ms": 30000}"#),
        Ok(br#"{"messages":[{"id":1,"delivery":1,"deadline_ms":30000,"body":"hi"}]}"#.to_vec())
    );
    assert_eq!(
        host.query(br#"{"op": "status"}"#),
        Ok(br#"{"messages":1,"next_ms":30000,"now_ms":0}"#.to_vec())
    );
    assert_eq!(code(host.apply(br#"{"op": "receive"}"#)), codes::MALFORMED);
}

#[test]
fn what_is_out_of_range_is_refused() {
    let mut host = Host::new();
    send(&mut host, &"x".repeat(MAX_BODY_LEN));
    let before = host.stored().clone();
    let visibility_ms = MAX_VISIBILITY_MS + 1;
    for command in [
        Command::Send { body: "x".repeat(MAX_BODY_LEN + 1), delay_ms: 0 },
        Command::Send { body: String::new(), delay_ms: visibility_ms },
        Command::Receive { visibility_ms, max: 1 },
        Command::Receive { visibility_ms: 0, max: 1 },
        Command::Receive { visibility_ms: 1, max: MAX_RECEIVED + 1 },
        Command::Extend { id: 1, delivery: 1, visibility_ms },
    ] {
        assert_eq!(code(host.send(&command)), failure::OUT_OF_RANGE);
    }
    assert_eq!(*host.stored(), before);
}

/// What a message must be like.
struct Expected {
    body: String,
    visible_ms: u64,
    deliveries: u32,
}

/// Any commands at all, against a model: no message is lost, none is received while it is hidden,
/// and each delivery has the next number.
#[test]
fn no_message_is_lost_and_none_is_received_by_two_at_a_time() {
    for seed in 0..20 {
        let mut random = Random::from_seed([seed; 32]);
        let mut host = Host::new();
        let mut model = BTreeMap::<u64, Expected>::new();
        for step in 0..300 {
            host.advance_ms(random.below(10));
            let now = host.time_ms();
            let id = random.below(step / 3 + 1) + 1;
            let delivery = random.below(3) as u32 + 1;
            let latest = model.get(&id).is_some_and(|message| message.deliveries == delivery);
            match random.below(4) {
                0 => {
                    let (body, visible_ms) = (step.to_string(), now);
                    let id = send(&mut host, &body);
                    let new = Expected { body, visible_ms, deliveries: 0 };
                    assert!(model.insert(id, new).is_none(), "ids are not used again");
                }
                1 => received(&mut host, &mut model, random.below(3) as usize + 1),
                2 => {
                    assert_eq!(ack(&mut host, id, delivery).is_ok(), latest);
                    model.retain(|other, _| !(latest && *other == id));
                }
                _ => {
                    let result = extend(&mut host, id, delivery, 25);
                    assert_eq!(result.is_ok(), latest);
                    if let (Ok(deadline_ms), Some(message)) = (result, model.get_mut(&id)) {
                        message.visible_ms = deadline_ms;
                    }
                }
            }
            let next_ms = model.values().map(|message| message.visible_ms).min();
            let expected = Status { messages: model.len() as u64, next_ms, now_ms: now };
            assert_eq!(status(&mut host), expected);
        }
    }
}

/// Receives from the queue and from the model.
fn received(host: &mut Host, model: &mut BTreeMap<u64, Expected>, max: usize) {
    let now = host.time_ms();
    let mut visible: Vec<(u64, u64)> =
        model.iter().map(|(id, message)| (message.visible_ms, *id)).collect();
    visible.retain(|(visible_ms, _)| *visible_ms <= now);
    visible.sort_unstable();
    visible.truncate(max);
    let messages = receive(host, 20, max);
    assert_eq!(ids(&messages), visible.iter().map(|(_, id)| *id).collect::<Vec<_>>());
    for message in messages {
        let expected = model.get_mut(&message.id).expect("it was sent and not acknowledged");
        assert_eq!(message.body, expected.body);
        assert_eq!(message.delivery, expected.deliveries + 1);
        *expected = Expected {
            body: message.body,
            visible_ms: message.deadline_ms,
            deliveries: message.delivery,
        };
    }
}
