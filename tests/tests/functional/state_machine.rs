//! The service for any plugin, here with the commands of the default one.

use bytes::Bytes;
use raft_kv_client::Error;
use raft_kv_plugin_kv::protocol::{
    Command, Put, Query, Scan, ScanPage, decode_delete, decode_get, decode_put, failure, version,
};
use raft_kv_proto::v1::{
    ApplyRequest, Consistency, QueryRequest, error_detail::Detail, plugin_error::Kind,
};
use raft_kv_tests::{grpc, shared_node};

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Command<'a> {
    Command::Put(Put { key, value, expected: None, ttl_ms: None })
}

#[tokio::test]
async fn commands_and_queries_of_the_plugin_go_through() {
    let node = shared_node();
    let client = node.client().await;
    let key = b"machine/plain".as_slice();
    let response = client.apply(key, put(key, b"value").encode()).await.unwrap();
    let written = decode_put(&response).unwrap();
    let query = Query::Get { key }.encode();
    let response = client.query(key, query).await.unwrap();
    let found = decode_get(&response).unwrap().unwrap();
    assert_eq!(&response[found.value], b"value");
    assert_eq!(found.version, written);
    // What one service writes the other reads.
    let found = client.get_with_version(key).await.unwrap().unwrap();
    assert_eq!(found.value, "value");
    assert_eq!(found.version.0, written);
    let response =
        client.apply(key, Command::Delete { key, expected: None }.encode()).await.unwrap();
    assert!(decode_delete(&response).unwrap());
    assert_eq!(client.get(key).await.unwrap(), None);
}

#[tokio::test]
async fn a_version_names_the_log_entry_of_its_put() {
    let node = shared_node();
    let client = node.client().await;
    let key = "machine/version";
    let first = client.put(key, "1").await.unwrap().0;
    let second = client.put(key, "2").await.unwrap().0;
    assert!(version::log_index(first) > 0);
    assert!(version::log_index(second) > version::log_index(first));
}

#[tokio::test]
async fn a_command_sees_the_keys_of_its_own_slot_alone() {
    let node = shared_node();
    let client = node.client().await;
    let scan = Query::Scan(Scan {
        prefix: b"machine/slot/",
        after: None,
        max_rows: 100,
        max_bytes: 1 << 20,
    });
    let key = b"machine/slot/key".as_slice();
    client.apply("{machine-slot-1}", put(key, b"1").encode()).await.unwrap();
    client.apply("{machine-slot-2}", put(key, b"2").encode()).await.unwrap();
    for (route, value) in [("{machine-slot-1}", b"1"), ("{machine-slot-2}", b"2")] {
        let page = client.query(route, scan.encode()).await.unwrap();
        let rows: Vec<_> = ScanPage::decode(&page).unwrap().rows().collect();
        assert_eq!(rows.len(), 1, "{route}");
        assert_eq!(&page[rows[0].key.clone()], key);
        assert_eq!(&page[rows[0].value.clone()], value);
    }
}

#[tokio::test]
async fn what_the_plugin_refuses_comes_back_with_its_code_and_words() {
    let node = shared_node();
    let client = node.client().await;
    for command in [b"".as_slice(), b"\xee", b"\x01", b"\x01\xff", b"\x01\0\xff\0\0\0k"] {
        for result in [
            client.apply("machine/refused", command).await,
            client.query("machine/refused", command).await,
        ] {
            match result {
                Err(Error::Plugin { kind: Kind::Failed, code: failure::MALFORMED, message }) => {
                    assert!(!message.is_empty())
                }
                other => panic!("{command:?}: {other:?}"),
            }
        }
    }
    let mut machine = grpc::state_machine(node.channel().await);
    let request =
        ApplyRequest { key: "machine/refused".into(), command: "\u{7f}".into(), once: None };
    let status = machine.apply(request).await.unwrap_err();
    match grpc::detail(&status) {
        Detail::PluginError(error) => {
            assert_eq!(error.kind(), Kind::Failed);
            assert_eq!(error.code, failure::MALFORMED);
        }
        other => panic!("{other:?}"),
    }
    client.put("machine/refused", "v").await.unwrap();
}

#[tokio::test]
async fn a_query_may_be_stale() {
    let node = shared_node();
    let client = node.client().await;
    client.put("machine/stale", "v").await.unwrap();
    let mut machine = grpc::state_machine(node.channel().await);
    let request = QueryRequest {
        key: "machine/stale".into(),
        request: Query::Get { key: b"machine/stale" }.encode().into(),
        consistency: Consistency::Stale.into(),
    };
    let response: Bytes = machine.query(request).await.unwrap().into_inner().response;
    let found = decode_get(&response).unwrap();
    assert!(found.is_none_or(|found| &response[found.value] == b"v"));
}
