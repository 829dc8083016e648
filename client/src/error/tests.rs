//! Each status becomes its own error, with a message for people.

use raft_kv_proto::{
    status_with_detail,
    v1::{
        ErrorDetail, InvalidArgument, NotLeader, PluginError, ResourceExhausted, ShardUnavailable,
        StaleRouting,
    },
};

use super::*;

fn endpoint() -> Endpoint {
    "127.0.0.1:5001".parse().unwrap()
}

fn from_detail(code: Code, detail: Detail) -> Error {
    Error::from_call(status_with_detail(code, "a message", detail), &endpoint())
}

fn plugin_error(kind: Kind) -> PluginError {
    PluginError { kind: kind.into(), code: 7, message: "no".into() }
}

#[test]
fn a_detail_decides_over_the_code() {
    let not_leader = Detail::NotLeader(NotLeader {
        shard: "shard_0".into(),
        leader: "node2".into(),
        address: "127.0.0.1:5002".into(),
    });
    let error = from_detail(Code::Unavailable, not_leader);
    assert!(matches!(&error, Error::NotLeader { address, .. } if address == "127.0.0.1:5002"));
    assert!(error.to_string().ends_with("ask node2 at 127.0.0.1:5002"), "{error}");

    let invalid =
        Detail::InvalidArgument(InvalidArgument { field: "key".into(), limit: "64 KiB".into() });
    let error = from_detail(Code::InvalidArgument, invalid);
    assert_eq!(error.to_string(), "invalid key: a message");

    let shard = Detail::ShardUnavailable(ShardUnavailable::default());
    let stale = Detail::StaleRouting(StaleRouting { version: 3, ..StaleRouting::default() });
    for detail in [shard, stale] {
        let error = from_detail(Code::FailedPrecondition, detail);
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }

    let full = Detail::ResourceExhausted(ResourceExhausted::default());
    let error = from_detail(Code::Unavailable, full);
    assert!(matches!(error, Error::ResourceExhausted { .. }), "{error:?}");
}

#[test]
fn a_plugins_refusal_of_a_comparison_is_a_version_mismatch() {
    let refused = Detail::PluginError(plugin_error(Kind::Failed));
    let error = from_detail(Code::FailedPrecondition, refused);
    assert_eq!(error.to_string(), "the plugin refused the command (code 7): no");
    let other = error.of_comparison();
    assert!(matches!(other, Error::Plugin { code: 7, .. }), "{other:?}");

    let mismatch = PluginError { code: VERSION_MISMATCH, ..plugin_error(Kind::Failed) };
    let error = from_detail(Code::FailedPrecondition, Detail::PluginError(mismatch));
    assert!(matches!(error.of_comparison(), Error::VersionMismatch { message } if message == "no"));

    let trapped = Detail::PluginError(plugin_error(Kind::Trap));
    let error = from_detail(Code::Internal, trapped).of_comparison();
    assert!(matches!(error, Error::Plugin { kind: Kind::Trap, .. }), "{error:?}");
}

#[test]
fn a_status_without_detail_is_read_by_its_code() {
    let error = |status| Error::from_call(status, &endpoint());
    let invalid = error(Status::invalid_argument("too long"));
    assert_eq!(invalid.to_string(), "invalid request: too long");
    assert!(matches!(error(Status::unavailable("x")), Error::Unavailable { .. }));
    let full = error(Status::resource_exhausted("x"));
    assert!(matches!(full, Error::ResourceExhausted { .. }));
    let other = error(Status::data_loss("a bad block"));
    assert_eq!(other.to_string(), "the node failed the request with DataLoss: a bad block");
}

#[test]
fn a_connection_never_made_differs_from_one_that_broke() {
    let refused = Status::from_error(Box::new(ConnectError("refused".into())));
    let error = Error::from_call(refused, &endpoint());
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    assert_eq!(error.to_string(), "no node answers at 127.0.0.1:5001: is it running?");

    let broken = Status::from_error("reset by peer".into());
    let error = Error::from_call(broken, &endpoint());
    assert!(
        matches!(&error, Error::Unavailable { message }
        if message.contains("127.0.0.1:5001 broke (reset by peer)")),
        "{error:?}"
    );
}

#[test]
fn the_error_of_an_operation_is_read_like_a_status() {
    let error = Error::from(OperationError {
        code: Code::FailedPrecondition.into(),
        message: "mismatch".into(),
        detail: Some(ErrorDetail { detail: Some(Detail::PluginError(plugin_error(Kind::Failed))) }),
    });
    assert!(matches!(error, Error::Plugin { code: 7, .. }), "{error:?}");
}
