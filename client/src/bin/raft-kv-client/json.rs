//! Answers for programs.

pub mod cluster;
pub mod plugin;

use std::time::Duration;

use raft_kv_client::{AtomicOutcome, Outcome, ShardStatus, StatusResponse, Version, Versioned};
use serde_json::{Value, json};

/// A key and its new version.
pub fn written(key: &[u8], version: Version) -> Value {
    json!({ "key": bytes(key), "version": version.0 })
}

/// A key, its value and its version.
pub fn pair(key: &[u8], value: &[u8], version: Version) -> Value {
    json!({ "key": bytes(key), "value": bytes(value), "version": version.0 })
}

/// A key, its value, its version, and in how many milliseconds it is gone if it is to go.
pub fn found(key: &[u8], found: &Versioned) -> Value {
    with_ttl(pair(key, &found.value, found.version), found.ttl)
}

fn with_ttl(mut found: Value, ttl: Option<Duration>) -> Value {
    if let Some(ttl) = ttl {
        found["ttl_ms"] = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).into();
    }
    found
}

/// A key and the number that is its value.
pub fn number(key: &[u8], number: i64) -> Value {
    json!({ "key": bytes(key), "value": number })
}

/// What became of an atomic request.
pub fn atomic(outcome: &AtomicOutcome) -> Value {
    match outcome {
        AtomicOutcome::Held(outcomes) => {
            let results = outcomes.iter().map(one_of_many).collect::<Vec<_>>();
            json!({ "held": true, "results": results })
        }
        AtomicOutcome::Failed { compare, version } => {
            json!({ "held": false, "failed": { "condition": compare, "version": version.0 } })
        }
    }
}

fn one_of_many(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Put(version) => json!({ "version": version.0 }),
        Outcome::Get(None) => json!({ "found": false }),
        Outcome::Get(Some(Versioned { value, version, ttl })) => {
            let found = json!({ "found": true, "value": bytes(value), "version": version.0 });
            with_ttl(found, *ttl)
        }
        Outcome::Delete(existed) => json!({ "existed": existed }),
        Outcome::Increment(value, version) => json!({ "value": value, "version": version.0 }),
    }
}

/// A key and whether it existed.
pub fn deleted(key: &[u8], existed: bool) -> Value {
    json!({ "key": bytes(key), "existed": existed })
}

/// A shard, a node, and the number of the node's replica.
pub fn replica(shard: &str, node: &str, replica: u64) -> Value {
    json!({ "shard": shard, "node": node, "replica": replica })
}

/// All that a node knows.
pub fn status(status: &StatusResponse) -> Value {
    json!({
        "node_id": status.node_id,
        "cluster_id": status.cluster_id,
        "address": status.address,
        "version": status.version,
        "uptime_seconds": status.uptime_seconds,
        "slots": status.slots,
        "disk_usage_bytes": status.disk_usage_bytes,
        "shards": status.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}

fn shard(shard: &ShardStatus) -> Value {
    json!({
        "name": shard.name,
        "group": shard.group,
        "slots": cluster::slots(&shard.slots),
        "leader": shard.leader,
        "role": shard.role,
        "term": shard.term,
        "commit_index": shard.commit_index,
        "applied_index": shard.applied_index,
        "epoch": shard.epoch,
        "replicas": shard.replicas,
        "learners": shard.learners,
        "plugin": shard.plugin.as_ref().map(cluster::plugin),
        "state_hash": shard.state_hash,
        "reason": shard.reason,
    })
}

/// A string, or `{"base64": …}` for what is not UTF-8.
fn bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": base64(bytes) }),
    }
}

/// Standard base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        for digit in 0..4 {
            if digit <= chunk.len() {
                text.push(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63].into());
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_gives_the_vectors_of_the_rfc() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in vectors {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0x3f]), "//4/");
    }

    #[test]
    fn only_what_is_not_utf8_is_base64() {
        assert_eq!(bytes("ü\n".as_bytes()), json!("ü\n"));
        assert_eq!(bytes(&[0xff]), json!({ "base64": "/w==" }));
    }
}
