//! A store without a cluster, and what is asked of it.

#![allow(dead_code, reason = "each test program uses some of it")]

use raft_kv_plugin_kv::KeyValue;
use raft_kv_plugin_kv::protocol::{
    Command, Put, Query, Scan, ScanPage, decode_delete, decode_get, decode_put,
};
use raft_kv_sdk::Failure;
use raft_kv_sdk::testing::TestHost;

pub type Store = TestHost<KeyValue>;

pub fn put_command(key: &[u8], value: &[u8], expected: Option<u64>) -> Vec<u8> {
    Command::Put(Put { key, value, expected, ttl_ms: None }).encode()
}

pub fn put_expecting(
    store: &mut Store,
    (key, value): (&[u8], &[u8]),
    expected: Option<u64>,
) -> Result<u64, Failure> {
    let response = store.apply(&put_command(key, value, expected))?;
    Ok(decode_put(&response).expect("a put answers with a version"))
}

pub fn put(store: &mut Store, key: &[u8], value: &[u8]) -> u64 {
    put_expecting(store, (key, value), None).expect("a put without conditions succeeds")
}

pub fn delete(store: &mut Store, key: &[u8]) -> bool {
    let response =
        store.apply(&Command::Delete { key, expected: None }.encode()).expect("a delete succeeds");
    decode_delete(&response).expect("a delete answers whether the key was there")
}

pub fn get(store: &mut Store, key: &[u8]) -> Option<(u64, Vec<u8>)> {
    let response = store.query(&Query::Get { key }.encode()).expect("a get succeeds");
    let found = decode_get(&response).expect("a get answers in its format")?;
    Some((found.version, response[found.value].to_vec()))
}

pub fn scan_page(store: &mut Store, scan: Scan<'_>) -> (Vec<Vec<u8>>, bool) {
    let response = store.query(&Query::Scan(scan).encode()).expect("a scan succeeds");
    let page = ScanPage::decode(&response).expect("a scan answers in its format");
    (page.rows().map(|row| response[row.key].to_vec()).collect(), page.more())
}

pub const ALL: Scan<'_> =
    Scan { prefix: b"", after: None, max_rows: u32::MAX, max_bytes: u32::MAX };

pub fn put_for(store: &mut Store, key: &[u8], value: &[u8], ttl_ms: u64) -> u64 {
    let put = Put { key, value, expected: None, ttl_ms: Some(ttl_ms) };
    let response = store.apply(&Command::Put(put).encode()).expect("a put succeeds");
    decode_put(&response).expect("a put answers with a version")
}

/// All keys that a scan shows.
pub fn keys(store: &mut Store) -> Vec<Vec<u8>> {
    scan_page(store, ALL).0
}
