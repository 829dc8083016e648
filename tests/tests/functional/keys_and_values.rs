//! Putting, getting and deleting, whatever the bytes.

use std::time::Duration;

use raft_kv_client::{Operation, Outcome};
use raft_kv_tests::{eventually, http, shared_node};

use crate::doors::{Door, hex};

/// Keys that something on the way might take for something else.
const AWKWARD_KEYS: [&[u8]; 22] = [
    b"\0",
    b"\xff",
    b"\0\xff\0",
    b"\xc3\x28",
    b"/",
    b"//a//",
    b".",
    b"..",
    b"../../etc/passwd",
    b"%",
    b"%41",
    b"%zz",
    b"?prefix=a&limit=1#x",
    b"a+b c",
    b" ",
    b"\r\n\r\n",
    b"{tag}",
    b"{}",
    b"}{",
    b"{{tag}}",
    "sch\u{f6}n \u{1f600} \u{202e}".as_bytes(),
    b"-",
];

#[tokio::test]
async fn what_goes_in_through_one_door_comes_out_of_every_other() {
    let node = shared_node();
    let mut writers = Door::all(&node).await;
    let mut readers = Door::all(&node).await;
    for writer in &mut writers {
        let key = format!("doors/{}/\0\u{ff}/%", writer.name()).into_bytes();
        let value = [b"\0\xff\r\nvalue of ", writer.name().as_bytes()].concat();
        writer.put(&key, &value).await;
        for reader in &mut readers {
            let found = reader.get(&key).await;
            let way = format!("from {} to {}", writer.name(), reader.name());
            assert_eq!(found.as_ref(), Some(&value), "{way}");
        }
        assert!(writer.delete(&key).await, "{}", writer.name());
        assert!(!writer.delete(&key).await, "{}", writer.name());
        for reader in &mut readers {
            assert_eq!(reader.get(&key).await, None, "{}", reader.name());
        }
    }
}

#[tokio::test]
async fn keys_are_any_bytes() {
    let node = shared_node();
    let [mut library, _, mut http, _] = Door::all(&node).await;
    for key in AWKWARD_KEYS {
        let value = hex(key).into_bytes();
        http.put(key, &value).await;
        assert_eq!(library.get(key).await.as_ref(), Some(&value), "{value:?}");
        assert!(library.delete(key).await, "{value:?}");
        library.put(key, &value).await;
        assert_eq!(http.get(key).await.as_ref(), Some(&value), "{value:?}");
        assert!(http.delete(key).await, "{value:?}");
    }
}

#[tokio::test]
async fn keys_that_differ_in_one_byte_are_different_keys() {
    let node = shared_node();
    let client = node.client().await;
    let key = |byte: u8| [b"one byte/".as_slice(), &[byte]].concat();
    let puts = (0..=255).map(|byte| Operation::put(key(byte), [byte]));
    for result in client.batch(puts).await.unwrap() {
        result.unwrap();
    }
    let gets = (0..=255).map(|byte| Operation::get(key(byte)));
    let found = client.batch(gets).await.unwrap();
    for (byte, found) in (0..=255u8).zip(found) {
        match found {
            Ok(Outcome::Get(Some(found))) => assert_eq!(*found.value, [byte]),
            other => panic!("byte {byte}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_empty_value_is_a_value() {
    let node = shared_node();
    for door in &mut Door::all(&node).await {
        let key = format!("empty value/{}", door.name()).into_bytes();
        assert_eq!(door.get(&key).await, None, "{}", door.name());
        door.put(&key, b"").await;
        assert_eq!(door.get(&key).await, Some(Vec::new()), "{}", door.name());
        assert!(door.delete(&key).await, "{}", door.name());
        assert_eq!(door.get(&key).await, None, "{}", door.name());
    }
}

#[tokio::test]
async fn a_value_of_5_mib_goes_through_every_door() {
    let node = shared_node();
    let value: Vec<u8> = (0..5u32 << 20).map(|n| (n % 251) as u8).collect();
    for door in &mut Door::all(&node).await {
        let key = format!("5 MiB/{}", door.name()).into_bytes();
        door.put(&key, &value).await;
        let found = door.get(&key).await;
        assert!(found.as_deref() == Some(&value), "{}", door.name());
        assert!(door.delete(&key).await);
    }
}

#[tokio::test]
async fn every_write_of_a_key_gives_it_a_higher_version() {
    let node = shared_node();
    let client = node.client().await;
    let mut last = client.put("versions", "0").await.unwrap();
    assert!(last.0 > 0, "0 is the version of an absent key");
    for round in 1..20 {
        if round % 5 == 0 {
            assert!(client.delete("versions").await.unwrap());
        }
        let version = client.put("versions", round.to_string()).await.unwrap();
        assert!(version > last, "{version} after {last}");
        let found = client.get_with_version("versions").await.unwrap().unwrap();
        assert_eq!(found.version, version);
        assert_eq!(found.value, round.to_string());
        last = version;
    }
    let answer = node.http().get(&http::path_of(b"versions")).unwrap();
    let header = answer.header("raftkv-version").unwrap();
    assert_eq!(header, last.to_string());
}

#[tokio::test]
async fn a_read_sees_every_write_acknowledged_before_it() {
    let node = shared_node();
    let (writer, reader) = (node.client().await, node.client().await);
    for round in 0..300 {
        let value = round.to_string();
        writer.put("read your writes", &value).await.unwrap();
        let found = reader.get("read your writes").await.unwrap();
        assert_eq!(found.as_deref(), Some(value.as_bytes()));
    }
}

#[tokio::test]
async fn a_stale_read_gives_an_earlier_state_and_catches_up() {
    let node = shared_node();
    let client = node.client().await;
    for round in 0..20u32 {
        let version = client.put("stale", round.to_string()).await.unwrap();
        let limit = Duration::from_secs(5);
        let what = format!("a stale read to see round {round}");
        eventually(what, limit, async || {
            let found = client.get_stale("stale").await.unwrap()?;
            let text = String::from_utf8(found.value.to_vec()).unwrap();
            let seen: u32 = text.parse().unwrap();
            assert!(seen <= round && found.version <= version, "{found:?}");
            (seen == round).then_some(())
        })
        .await;
    }
    assert_eq!(client.get_stale("stale/absent").await.unwrap(), None);
}
