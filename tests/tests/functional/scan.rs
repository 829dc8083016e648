//! Scans: all keys of a prefix, over all shards, in order.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt;
use raft_kv_client::{KeyValue, Operation, RaftKVClient};
use raft_kv_proto::v1::{ScanRequest, kv_client::KvClient};
use raft_kv_tests::{Node, http, shared_node};

/// Puts pairs, many in a call.
async fn put_all(client: &RaftKVClient, pairs: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let pairs: Vec<_> = pairs.iter().collect();
    for chunk in pairs.chunks(1000) {
        let puts = chunk.iter().map(|(key, value)| Operation::put(*key, *value));
        for result in client.batch(puts).await.unwrap() {
            result.unwrap();
        }
    }
}

fn numbered(prefix: &str, count: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let pair = |n| (format!("{prefix}{n:05}").into_bytes(), format!("value {n}").into_bytes());
    (0..count).map(pair).collect()
}

#[track_caller]
fn assert_pairs<'a>(
    found: &[KeyValue],
    expected: impl IntoIterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>,
) {
    let found: Vec<(&[u8], &[u8])> = found.iter().map(|p| (&p.key[..], &p.value[..])).collect();
    let expected = expected.into_iter().map(|(key, value)| (&key[..], &value[..]));
    let expected: Vec<(&[u8], &[u8])> = expected.collect();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(*found, expected);
    }
}

#[tokio::test]
async fn five_thousand_keys_come_in_order_with_limit_and_cursor() {
    let node = shared_node();
    let client = node.client().await;
    let pairs = numbered("scan/5000/", 5000);
    put_all(&client, &pairs).await;
    // Beside them, before and after.
    client.put("scan/5000.", "before").await.unwrap();
    client.put("scan/50000", "after").await.unwrap();

    let all = client.scan("scan/5000/").collect().await.unwrap();
    assert_pairs(&all, &pairs);
    let some = client.scan("scan/5000/").limit(37).collect().await.unwrap();
    assert_pairs(&some, pairs.iter().take(37));
    let more = client.scan("scan/5000/").after("scan/5000/00099").limit(1500);
    assert_pairs(&more.collect().await.unwrap(), pairs.iter().skip(100).take(1500));
    let fewer = client.scan("scan/5000/0123").limit(100).collect().await.unwrap();
    assert_pairs(&fewer, pairs.iter().skip(1230).take(10));
    let between = client.scan("scan/5000/").after("scan/5000/04990x").collect();
    assert_pairs(&between.await.unwrap(), pairs.iter().skip(4991));
    let none = client.scan("scan/5000/x").collect().await.unwrap();
    assert_pairs(&none, []);
}

#[tokio::test]
async fn a_plain_grpc_client_pages_through_by_the_cursor() {
    let node = shared_node();
    let pairs = numbered("scan/pages/", 2500);
    put_all(&node.client().await, &pairs).await;
    // With the message limit of 4 MiB that every gRPC client has.
    let mut kv = KvClient::new(node.channel().await);
    let mut found = Vec::new();
    let mut cursor = Bytes::new();
    for call in 1.. {
        assert!(call < 30, "the scan does not end");
        let request =
            ScanRequest { prefix: "scan/pages/".into(), limit: 100, cursor, consistency: 0 };
        let pages = kv.scan(request).await.unwrap().into_inner();
        let pages: Vec<_> = pages.try_collect().await.unwrap();
        let count: usize = pages.iter().map(|page| page.pairs.len()).sum();
        assert!(count <= 100, "{count}");
        cursor = pages.last().map(|page| page.cursor.clone()).unwrap_or_default();
        found.extend(pages.into_iter().flat_map(|page| page.pairs));
        if cursor.is_empty() {
            break;
        }
    }
    let found: Vec<KeyValue> = found.into_iter().map(KeyValue::from).collect();
    assert_pairs(&found, &pairs);
}

#[tokio::test]
async fn a_scan_shows_what_was_written_last_and_not_what_was_deleted() {
    let node = shared_node();
    let client = node.client().await;
    let mut pairs = numbered("scan/changes/", 300);
    put_all(&client, &pairs).await;
    let gone: Vec<Vec<u8>> = pairs.keys().step_by(3).cloned().collect();
    for key in &gone {
        pairs.remove(key);
    }
    for result in client.batch(gone.iter().map(Operation::delete)).await.unwrap() {
        result.unwrap();
    }
    for value in pairs.values_mut().step_by(2) {
        *value = b"new".to_vec();
    }
    put_all(&client, &pairs).await;
    let found = client.scan("scan/changes/").collect().await.unwrap();
    assert_pairs(&found, &pairs);
    for pair in &found[..10] {
        let got = client.get_with_version(&pair.key).await.unwrap().unwrap();
        assert_eq!(pair.version, got.version);
    }
    let stale = client.scan("scan/changes/").stale().collect().await.unwrap();
    assert_pairs(&stale, &pairs);
}

#[tokio::test]
async fn a_prefix_with_a_tag_finds_the_keys_of_that_tag() {
    let node = shared_node();
    let client = node.client().await;
    let mut pairs = numbered("{scan-a}:", 200);
    pairs.extend(numbered("{scan-b}:", 50));
    pairs.insert(b"{scan-a}".to_vec(), b"bare".to_vec());
    pairs.insert(b"{scan-a".to_vec(), b"not closed".to_vec());
    pairs.insert(b"{scan-a}x{other}".to_vec(), b"two tags".to_vec());
    put_all(&client, &pairs).await;
    for prefix in ["{scan-a}:", "{scan-a}", "{scan-a", "{scan-b}:0001", "{scan-"] {
        let found = client.scan(prefix).collect().await.unwrap();
        let expected = pairs.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes()));
        assert_pairs(&found, expected);
    }
    let found = client.scan("{scan-a}:").after("{scan-a}:00150").limit(20);
    let expected = pairs.iter().filter(|(key, _)| key.starts_with(b"{scan-a}:"));
    assert_pairs(&found.collect().await.unwrap(), expected.skip(151).take(20));
}

#[tokio::test]
async fn a_prefix_is_any_bytes() {
    let node = Node::start();
    let client = node.client().await;
    let keys: [&[u8]; 8] = [
        b"\xff",
        b"\xff\0",
        b"\xff\xfe\xff",
        b"\xff\xff",
        b"\xff\xff\xff",
        b"\xff\xff\xff\x01",
        b"\xfe\xff\xff",
        b"\xfe\xff\xff\xff",
    ];
    let pairs = keys.map(|key| (key.to_vec(), key.to_vec()));
    let pairs = BTreeMap::from(pairs);
    put_all(&client, &pairs).await;
    for prefix in [b"\xff".as_slice(), b"\xff\xff", b"\xff\xff\xff", b"\xfe\xff", b"\xff\0"] {
        let found = client.scan(prefix).collect().await.unwrap();
        let expected = pairs.iter().filter(|(key, _)| key.starts_with(prefix));
        assert_pairs(&found, expected);
    }
}

#[tokio::test]
async fn large_values_come_in_pages_that_fit() {
    let node = shared_node();
    let client = node.client().await;
    let pair = |n: u8| (format!("scan/large/{n}").into_bytes(), vec![n; 2 << 20]);
    let pairs: BTreeMap<_, _> = (0..9).map(pair).collect();
    for (key, value) in &pairs {
        client.put(key, value).await.unwrap();
    }
    let found = client.scan("scan/large/").collect().await.unwrap();
    assert!(
        found
            .iter()
            .map(|pair| (&pair.key[..], &pair.value[..]))
            .eq(pairs.iter().map(|(key, value)| (&key[..], &value[..])))
    );
}

#[tokio::test]
async fn a_scan_beside_writers_is_in_order_and_misses_nothing_old() {
    let node = shared_node();
    let client = node.client().await;
    let pairs = numbered("scan/busy/", 1000);
    put_all(&client, &pairs).await;
    let writer = {
        let client = client.clone();
        tokio::spawn(async move {
            for n in 0.. {
                let key = format!("scan/busy/{:05}new", n % 1000);
                client.put(key, "new").await.unwrap();
            }
        })
    };
    for _ in 0..10 {
        let found = client.scan("scan/busy/").collect().await.unwrap();
        assert!(found.is_sorted_by(|a, b| a.key < b.key), "out of order");
        let old: Vec<KeyValue> = found.into_iter().filter(|pair| pair.value != "new").collect();
        assert_pairs(&old, &pairs);
    }
    writer.abort();
}

#[tokio::test]
async fn the_empty_prefix_gives_all_keys_of_all_shards() {
    let node = Node::start();
    let client = node.client().await;
    assert_pairs(&client.scan("").collect().await.unwrap(), []);
    let mut pairs = numbered("", 1000);
    pairs.extend(numbered("{tag}", 100));
    pairs.extend((0..=255).map(|byte| (vec![byte], vec![byte])));
    put_all(&client, &pairs).await;
    assert_pairs(&client.scan("").collect().await.unwrap(), &pairs);
    let some = client.scan("").after([0]).limit(3).collect().await.unwrap();
    assert_pairs(&some, pairs.iter().skip(1).take(3));
    let answer = node.http().get("/kv?limit=2").unwrap();
    assert_eq!(answer.json()["pairs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn http_pages_through_by_the_cursor() {
    let node = shared_node();
    let client = node.client().await;
    let mut pairs = numbered("scan/http/%/", 25);
    pairs.insert(b"scan/http/%/\xff\0".to_vec(), b"\xfe".to_vec());
    pairs.insert("scan/http/%/\u{fc}&=+ ".into(), Vec::new());
    put_all(&client, &pairs).await;
    let mut connection = node.http();
    let first = format!("/kv?prefix={}&limit=4", http::encoded(b"scan/http/%/"));
    let mut target = first.clone();
    let mut found = Vec::new();
    loop {
        let answer = connection.get(&target).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page = answer.json();
        let page_pairs = page["pairs"].as_array().unwrap();
        assert!(page_pairs.len() <= 4, "{page}");
        found.extend(page_pairs.iter().cloned());
        match &page["cursor"] {
            serde_json::Value::Null => break,
            cursor => target = format!("{first}&cursor={}", cursor.as_str().unwrap()),
        }
        assert!(found.len() <= pairs.len(), "the scan does not end");
    }
    assert_eq!(found.len(), pairs.len());
    for (found, (key, value)) in found.iter().zip(&pairs) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
        match text(key) {
            Ok(key) => assert_eq!(found["key"], key),
            Err(_) => assert_eq!(found["key_base64"], "c2Nhbi9odHRwLyUv/wA="),
        }
        match text(value) {
            Ok(value) => assert_eq!(found["value"], value),
            Err(_) => assert_eq!(found["value_base64"], "/g=="),
        }
        let version = found["version"].as_str().unwrap();
        let got = client.get_with_version(key).await.unwrap().unwrap();
        assert_eq!(version, got.version.to_string());
    }
}
