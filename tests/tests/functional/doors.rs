//! The four doors as one, for tests that hold for each of them.

use raft_kv_client::RaftKVClient;
use raft_kv_proto::v1::{DeleteRequest, GetRequest, PutRequest};
use raft_kv_tests::{Node, cli, grpc, http};
use tonic::transport::Channel;

/// A way to put, get and delete.
pub enum Door {
    Library(RaftKVClient),
    Grpc(Channel),
    Http(http::Connection),
    CommandLine(String),
}

impl Door {
    /// All of them, to one node.
    pub async fn all(node: &Node) -> [Self; 4] {
        [
            Self::Library(node.client().await),
            Self::Grpc(node.channel().await),
            Self::Http(node.http()),
            Self::CommandLine(node.endpoint()),
        ]
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Library(_) => "client library",
            Self::Grpc(_) => "gRPC",
            Self::Http(_) => "HTTP",
            Self::CommandLine(_) => "command line",
        }
    }

    /// Sets a key.
    pub async fn put(&mut self, key: &[u8], value: &[u8]) {
        match self {
            Self::Library(client) => {
                client.put(key, value).await.unwrap();
            }
            Self::Grpc(channel) => {
                let request = PutRequest {
                    key: key.to_vec().into(),
                    value: value.to_vec().into(),
                    ..PutRequest::default()
                };
                grpc::kv(channel.clone()).put(request).await.unwrap();
            }
            Self::Http(connection) => {
                let answer = connection.request("PUT", &http::path_of(key), value).unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
            Self::CommandLine(endpoint) => {
                let arguments = ["put", "--hex", &hex(key), "-"];
                let ran = cli::run_with_stdin(endpoint, arguments, value);
                assert_eq!(ran.code, 0, "{ran:?}");
            }
        }
    }

    /// The value of a key.
    pub async fn get(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Library(client) => {
                let value = client.get(key).await.unwrap();
                value.map(|value| value.to_vec())
            }
            Self::Grpc(channel) => {
                let request = GetRequest { key: key.to_vec().into(), consistency: 0 };
                let found = grpc::kv(channel.clone()).get(request).await.unwrap();
                let found = found.into_inner();
                found.found.then(|| found.value.to_vec())
            }
            Self::Http(connection) => {
                let answer = connection.get(&http::path_of(key)).unwrap();
                match answer.status {
                    200 => Some(answer.body),
                    404 => None,
                    _ => panic!("{answer:?}"),
                }
            }
            Self::CommandLine(endpoint) => {
                let mut ran = cli::run(endpoint, ["get", "--hex", &hex(key)]);
                match ran.code {
                    0 => {
                        assert_eq!(ran.stdout.pop(), Some(b'\n'));
                        Some(ran.stdout)
                    }
                    1 => None,
                    _ => panic!("{ran:?}"),
                }
            }
        }
    }

    /// Removes a key; tells whether it existed.
    pub async fn delete(&mut self, key: &[u8]) -> bool {
        match self {
            Self::Library(client) => client.delete(key).await.unwrap(),
            Self::Grpc(channel) => {
                let request =
                    DeleteRequest { key: key.to_vec().into(), ..DeleteRequest::default() };
                let deleted = grpc::kv(channel.clone()).delete(request).await.unwrap();
                deleted.into_inner().existed
            }
            Self::Http(connection) => {
                let path = http::path_of(key);
                let answer = connection.request("DELETE", &path, b"").unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                answer.json()["existed"].as_bool().unwrap()
            }
            Self::CommandLine(endpoint) => {
                let ran = cli::run(endpoint, ["delete", "--hex", &hex(key)]);
                assert!(ran.code < 2, "{ran:?}");
                ran.code == 0
            }
        }
    }
}

/// Two digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
