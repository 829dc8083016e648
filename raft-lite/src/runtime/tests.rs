//! The threads at work: one voter a group, in-memory logs.

use std::{sync::mpsc, thread, time::Duration};

use bytes::Bytes;

use super::*;
use crate::{
    ApplyError, CommandOutcome, GroupEntries, INITIAL_POSITION, Index, Membership, MemoryLogStore,
    NoTransport, NodeId, ReplicaId, ReplicaRecord, SnapshotMeta, SnapshotReply, SystemClock,
};

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A command that the state machine can not apply.
const POISON: &[u8] = b"poison";

type Answer = Result<Vec<CommandOutcome>, RequestError>;

/// Answers each command with itself, once it is let.
struct Echo {
    gate: parking_lot::RwLock<()>,
}

impl StateMachine for Echo {
    fn apply(
        &self,
        batch: &[GroupEntries],
        outcomes: &mut Vec<CommandOutcome>,
    ) -> Result<(), ApplyError> {
        let _passed = self.gate.read();
        for group in batch {
            for entry in &group.entries {
                for command in entry.payload.iter().flat_map(|payload| &payload.commands) {
                    if command.payload == POISON {
                        let message = "poisoned".to_owned();
                        return Err(ApplyError { group: group.group, message });
                    }
                    outcomes.push(CommandOutcome::Applied(command.payload.clone()));
                }
            }
        }
        Ok(())
    }

    fn request_flush(&self) {}

    fn persisted_index(&self, _group: GroupId) -> Result<Index, ApplyError> {
        Ok(INITIAL_POSITION.index)
    }

    fn make_snapshot(&self, _group: GroupId, _reply: SnapshotReply) {
        unreachable!("nobody lags behind")
    }

    fn release_snapshot(&self, _group: GroupId, _snapshot: &SnapshotMeta) {}

    fn install_snapshot(
        &self,
        _group: GroupId,
        _replica: ReplicaId,
        _snapshot: &SnapshotMeta,
        _fetched: &Bytes,
    ) -> Result<GroupDescriptor, ApplyError> {
        unreachable!("there is no other node")
    }

    fn discard_fetched(&self, _fetched: &Bytes) {}

    fn destroy_replica(&self, _group: GroupId, _replica: ReplicaId) -> Result<(), ApplyError> {
        Ok(())
    }

    fn last_destroyed(&self, _group: GroupId) -> Option<ReplicaId> {
        None
    }
}

struct Fixture {
    raft: Arc<MultiRaft>,
    machine: Arc<Echo>,
    log: Arc<MemoryLogStore>,
}

fn descriptor(group: u64, started: bool) -> GroupDescriptor {
    let record = ReplicaRecord { applied: INITIAL_POSITION, started, applied_by_snapshot: false };
    GroupDescriptor {
        group: GroupId(group),
        replica: ReplicaId(group),
        membership: Membership::of_voters(BTreeMap::from([(ReplicaId(group), NodeId(1))])),
        epoch: 1,
        record,
    }
}

fn start_with(config: Config, descriptors: Vec<GroupDescriptor>) -> Fixture {
    let machine = Arc::new(Echo { gate: parking_lot::RwLock::new(()) });
    let log = Arc::new(MemoryLogStore::new());
    let parts = Parts {
        log: Arc::clone(&log) as _,
        state_machine: Arc::clone(&machine) as _,
        transport: Arc::new(NoTransport),
        clock: Arc::new(SystemClock),
    };
    let raft = Arc::new(MultiRaft::start(config, parts, descriptors).unwrap());
    Fixture { raft, machine, log }
}

fn start() -> Fixture {
    start_with(Config::default(), vec![descriptor(1, false), descriptor(2, false)])
}

impl Fixture {
    fn propose(&self, group: u64, payloads: &[&'static [u8]]) -> mpsc::Receiver<Answer> {
        self.propose_what(false, group, payloads)
    }

    fn propose_what(
        &self,
        makes_room: bool,
        group: u64,
        payloads: &[&'static [u8]],
    ) -> mpsc::Receiver<Answer> {
        let (sender, receiver) = mpsc::channel();
        let command = |payload: &&'static [u8]| Command {
            payload: Bytes::from_static(payload),
            ..Command::default()
        };
        self.raft.propose(Proposal {
            group: GroupId(group),
            commands: payloads.iter().map(command).collect(),
            makes_room,
            reply: Box::new(move |answer| drop(sender.send(answer))),
        });
        receiver
    }

    fn read(&self, group: u64) -> Result<Index, RequestError> {
        let (sender, receiver) = mpsc::channel();
        self.raft.read(GroupId(group), Box::new(move |answer| drop(sender.send(answer))));
        receiver.recv_timeout(PATIENCE).unwrap()
    }
}

fn echo(payloads: &[&'static [u8]]) -> Answer {
    Ok(payloads.iter().map(|p| CommandOutcome::Applied(Bytes::from_static(p))).collect())
}

#[test]
fn each_proposal_gets_the_outcomes_of_its_own_commands() {
    let fixture = start();
    let answers: Vec<_> = (0..200)
        .map(|i| match i % 3 {
            0 => (fixture.propose(1, &[b"a", b"b"]), echo(&[b"a", b"b"])),
            1 => (fixture.propose(1, &[b"c"]), echo(&[b"c"])),
            _ => (fixture.propose(2, &[b"d", b"e", b"f"]), echo(&[b"d", b"e", b"f"])),
        })
        .collect();
    for (answer, expected) in answers {
        assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), expected);
    }
}

#[test]
fn waiting_proposals_share_entries_and_one_write() {
    let fixture = start();
    fixture.propose(1, &[b"first"]).recv_timeout(PATIENCE).unwrap().unwrap();
    let before = fixture.raft.status(GroupId(1)).unwrap().commit;
    let answers: Vec<_> = (0..1000).map(|_| fixture.propose(1, &[b"x"])).collect();
    for answer in answers {
        answer.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    let entries = fixture.raft.status(GroupId(1)).unwrap().commit.0 - before.0;
    assert!(entries < 1000, "1000 proposals took {entries} entries");
}

#[test]
fn a_read_sees_what_was_acknowledged() {
    let fixture = start();
    fixture.propose(1, &[b"x"]).recv_timeout(PATIENCE).unwrap().unwrap();
    let acknowledged = fixture.raft.status(GroupId(1)).unwrap().applied;
    assert!(fixture.read(1).unwrap() >= acknowledged);
    assert!(fixture.raft.could_read(GroupId(1)));
}

#[test]
fn a_group_that_can_not_be_applied_halts_alone() {
    let fixture = start();
    let poisoned = fixture.propose(1, &[POISON]).recv_timeout(PATIENCE).unwrap();
    // It is in the log: a later version may be able to apply it.
    assert!(matches!(poisoned, Err(RequestError::OutcomeUnknown(_))), "{poisoned:?}");
    let later = fixture.propose(1, &[b"x"]).recv_timeout(PATIENCE).unwrap();
    assert!(matches!(later, Err(RequestError::Unavailable(_))), "{later:?}");
    assert!(!fixture.raft.could_read(GroupId(1)));
    assert!(fixture.raft.status(GroupId(1)).unwrap().halted.unwrap().contains("poisoned"));
    let other = fixture.propose(2, &[b"x"]).recv_timeout(PATIENCE).unwrap();
    assert_eq!(other, echo(&[b"x"]));
}

#[test]
fn what_exceeds_the_budget_is_refused_at_once() {
    let config = Config { proposal_budget_bytes: 1000, ..Config::default() };
    let fixture = start_with(config, vec![descriptor(1, false)]);
    let held = fixture.machine.gate.write();
    let answers: Vec<_> = (0..100).map(|_| fixture.propose(1, &[b"x"])).collect();
    let at_once: Vec<_> = answers.iter().map(|answer| answer.try_recv()).collect();
    let refused = |answer: &&Result<Answer, _>| **answer == Ok(Err(RequestError::Overloaded));
    assert!(at_once.iter().filter(refused).count() >= 80, "{at_once:?}");
    drop(held);
    let let_in = answers.iter().filter(|a| a.recv_timeout(PATIENCE).is_ok_and(|a| a.is_ok()));
    assert!(let_in.count() >= 5);
    let after = fixture.propose(1, &[b"x"]).recv_timeout(PATIENCE).unwrap();
    assert_eq!(after, echo(&[b"x"]));
}

#[test]
fn while_the_disk_is_nearly_full_only_what_makes_room_is_taken() {
    let fixture = start();
    let answer = |makes_room| {
        let waiting = fixture.propose_what(makes_room, 1, &[b"x"]);
        waiting.recv_timeout(PATIENCE).unwrap()
    };
    assert_eq!(answer(false), echo(&[b"x"]));
    fixture.raft.set_disk_full(true);
    assert_eq!(answer(false), Err(RequestError::DiskFull { node: NodeId(1) }));
    assert_eq!(answer(true), echo(&[b"x"]));
    assert!(fixture.read(1).is_ok());
    fixture.raft.set_disk_full(false);
    assert_eq!(answer(false), echo(&[b"x"]));
}

#[test]
fn requests_are_answered_when_the_node_stops() {
    let fixture = start();
    let held = fixture.machine.gate.write();
    let waiting = fixture.propose(1, &[b"x"]);
    let raft = Arc::clone(&fixture.raft);
    let stopping = thread::spawn(move || raft.shutdown());
    drop(held);
    stopping.join().unwrap();
    // It was applied before the applier stopped, or not: it is answered.
    waiting.recv_timeout(PATIENCE).unwrap().ok();
    let late = fixture.propose(1, &[b"x"]).recv_timeout(PATIENCE).unwrap();
    assert_eq!(late, Err(RequestError::Stopping));
    assert_eq!(fixture.read(2), Err(RequestError::Stopping));
}

#[test]
fn a_replica_that_lost_its_log_is_quarantined() {
    let fixture = start_with(Config::default(), vec![descriptor(1, true), descriptor(2, false)]);
    let halted = fixture.raft.status(GroupId(1)).unwrap().halted.unwrap();
    assert!(halted.contains("log is missing"), "{halted}");
    assert!(matches!(fixture.read(1), Err(RequestError::Unavailable(_))));
    assert!(fixture.read(2).is_ok());
}

#[test]
fn a_log_that_belongs_to_nobody_is_removed() {
    let fixture = start();
    fixture.propose(1, &[b"x"]).recv_timeout(PATIENCE).unwrap().unwrap();
    fixture.raft.shutdown();
    let parts = Parts {
        log: Arc::clone(&fixture.log) as _,
        state_machine: Arc::clone(&fixture.machine) as _,
        transport: Arc::new(NoTransport),
        clock: Arc::new(SystemClock),
    };
    let descriptors = vec![descriptor(1, true)];
    let raft = MultiRaft::start(Config::default(), parts, descriptors).unwrap();
    assert_eq!(fixture.log.groups(), [GroupId(1)]);
    assert!(raft.status(GroupId(2)).is_none());
}
