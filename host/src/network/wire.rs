//! Forwarded commands and their outcomes, to and from the wire.

use bytes::Bytes;
use prost::Message;
use raft_kv_proto::v1::{
    self, ForwardRequest, ForwardResponse, command_outcome::Outcome, forward_error::Kind,
};
use raft_lite::{
    Command, CommandFailure, CommandOutcome, GroupId, NodeId, Rejection, RequestError,
};

use super::Forwarded;

pub(super) fn forward_request(
    id: u64,
    group: GroupId,
    commands: &[Command],
    makes_room: bool,
) -> ForwardRequest {
    let commands = commands.iter().map(|command| Bytes::from(command.encode_to_vec())).collect();
    ForwardRequest { id, group: group.0, commands, makes_room }
}

/// The commands of a request; `None` if one can not be read.
pub(super) fn commands(encoded: Vec<Bytes>) -> Option<Vec<Command>> {
    encoded.into_iter().map(|bytes| Command::decode(bytes).ok()).collect()
}

pub(super) fn forward_response(id: u64, result: Forwarded) -> ForwardResponse {
    match result {
        Ok(outcomes) => {
            let outcomes = outcomes.into_iter().map(outcome_to_wire).collect();
            ForwardResponse { id, outcomes, error: None }
        }
        Err(error) => ForwardResponse { id, outcomes: vec![], error: Some(error_to_wire(error)) },
    }
}

pub(super) fn result(response: ForwardResponse) -> Forwarded {
    if let Some(error) = response.error {
        return Err(error_from_wire(error));
    }
    let outcomes: Option<Vec<_>> = response.outcomes.into_iter().map(outcome_from_wire).collect();
    let strange = || RequestError::OutcomeUnknown("its leader's answer makes no sense".to_owned());
    outcomes.ok_or_else(strange)
}

/// A command's outcome, for another node.
pub fn outcome_to_wire(outcome: CommandOutcome) -> v1::CommandOutcome {
    let outcome = match outcome {
        CommandOutcome::Applied(response) => Outcome::Applied(response),
        CommandOutcome::Failed(CommandFailure { kind, code, message }) => {
            Outcome::Failed(v1::CommandFailure { kind, code, message })
        }
        CommandOutcome::Rejected(rejection) => Outcome::Rejected(rejection.number()),
    };
    v1::CommandOutcome { outcome: Some(outcome) }
}

/// Reads [`outcome_to_wire`]; `None` if it makes no sense.
pub fn outcome_from_wire(outcome: v1::CommandOutcome) -> Option<CommandOutcome> {
    Some(match outcome.outcome? {
        Outcome::Applied(response) => CommandOutcome::Applied(response),
        Outcome::Failed(v1::CommandFailure { kind, code, message }) => {
            CommandOutcome::Failed(CommandFailure { kind, code, message })
        }
        Outcome::Rejected(number) => CommandOutcome::Rejected(Rejection::from_number(number)?),
    })
}

/// Why a request was not carried out, for another node.
pub fn error_to_wire(error: RequestError) -> v1::ForwardError {
    let (kind, message, node) = match error {
        RequestError::NotLeader { leader } => {
            (Kind::NotLeader, String::new(), leader.map_or(0, |node| node.0))
        }
        RequestError::Overloaded => (Kind::Overloaded, String::new(), 0),
        RequestError::DiskFull { node } => (Kind::DiskFull, String::new(), node.0),
        RequestError::Unavailable(reason) => (Kind::Unavailable, reason, 0),
        RequestError::Refused(reason) => (Kind::Refused, reason, 0),
        RequestError::OutcomeUnknown(reason) => (Kind::OutcomeUnknown, reason, 0),
        RequestError::Stopping => (Kind::Stopping, String::new(), 0),
    };
    v1::ForwardError { kind: kind as i32, message, node }
}

/// Reads [`error_to_wire`].
pub fn error_from_wire(error: v1::ForwardError) -> RequestError {
    match error.kind() {
        Kind::NotLeader => {
            let leader = (error.node != 0).then_some(NodeId(error.node));
            RequestError::NotLeader { leader }
        }
        Kind::Overloaded => RequestError::Overloaded,
        Kind::DiskFull => RequestError::DiskFull { node: NodeId(error.node) },
        Kind::Unavailable => RequestError::Unavailable(error.message),
        Kind::Refused => RequestError::Refused(error.message),
        Kind::Stopping => RequestError::OutcomeUnknown("the leader's node is stopping".to_owned()),
        Kind::OutcomeUnknown | Kind::Unspecified => RequestError::OutcomeUnknown(error.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_the_wire() {
        let failure = CommandFailure { kind: 1, code: 2, message: "no".into() };
        let outcomes = vec![
            CommandOutcome::Applied(Bytes::from_static(b"yes")),
            CommandOutcome::Failed(failure),
            CommandOutcome::Rejected(Rejection::Expired),
        ];
        assert_eq!(result(forward_response(7, Ok(outcomes.clone()))), Ok(outcomes));
        for error in [
            RequestError::NotLeader { leader: Some(NodeId(3)) },
            RequestError::NotLeader { leader: None },
            RequestError::Overloaded,
            RequestError::DiskFull { node: NodeId(3) },
            RequestError::Unavailable("gone".into()),
            RequestError::Refused("not now".into()),
            RequestError::OutcomeUnknown("who knows".into()),
        ] {
            assert_eq!(result(forward_response(7, Err(error.clone()))), Err(error));
        }
    }

    #[test]
    fn commands_survive_the_wire_and_garbage_does_not() {
        let command = Command { slot: 3, session: 4, payload: "x".into(), ..Default::default() };
        let request = forward_request(1, GroupId(2), std::slice::from_ref(&command), false);
        assert_eq!(commands(request.commands), Some(vec![command]));
        assert_eq!(commands(vec![]), Some(vec![]));
        assert_eq!(commands(vec![Bytes::from_static(b"\xff\xff")]), None);
    }
}
