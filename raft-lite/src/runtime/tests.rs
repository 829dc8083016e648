//! The threads at work: one voter a group, in-memory logs.

use std::{sync::mpsc, thread, time::Duration};

use bytes::Bytes;

use super::*;
use crate::{
    ApplyError, CommandOutcome, Effects, EntryKind, GroupEntries, INITIAL_POSITION, Index,
    Membership, MemoryLogStore, NoTransport, NodeId, Payload, Rejection, ReplicaId, ReplicaRecord,
    SnapshotMeta, SnapshotReply, SystemClock,
};

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A command that the state machine can not apply.
const POISON: &[u8] = b"poison";

type Answer = Result<Vec<CommandOutcome>, RequestError>;

/// Answers each command with itself, once it is let. A structural change is the number
/// of a group: born by it, or gone with it if it is here.
struct Echo {
    gate: parking_lot::RwLock<()>,
    epochs: Mutex<BTreeMap<GroupId, u64>>,
    buried: Mutex<BTreeSet<GroupId>>,
}

impl Echo {
    fn change(&self, group: GroupId, payload: &Payload, effects: &mut Effects) {
        let mut epochs = self.epochs.lock();
        let epoch = epochs.entry(group).or_insert(1);
        if payload.epoch != *epoch {
            effects.outcomes.push(CommandOutcome::Rejected(Rejection::StaleEpoch));
            return;
        }
        *epoch += 1;
        effects.epochs.insert(group, *epoch);
        effects.outcomes.push(CommandOutcome::Applied(Bytes::new()));
        let other = u64::from(payload.structural[0]);
        if epochs.insert(GroupId(other), 1).is_none() {
            effects.born.push(descriptor(other, false));
        } else {
            self.buried.lock().insert(GroupId(other));
            effects.gone.push((GroupId(other), ReplicaId(other)));
        }
    }
}

impl StateMachine for Echo {
    fn apply(&self, batch: &[GroupEntries], effects: &mut Effects) -> Result<(), ApplyError> {
        let _passed = self.gate.read();
        for group in batch {
            for entry in &group.entries {
                for command in entry.payload.iter().flat_map(|payload| &payload.commands) {
                    if command.payload == POISON {
                        let message = "poisoned".to_owned();
                        return Err(ApplyError { group: group.group, message });
                    }
                    effects.outcomes.push(CommandOutcome::Applied(command.payload.clone()));
                }
                if let Some(payload) = &entry.payload
                    && payload.kind == EntryKind::Structural as i32
                {
                    self.change(group.group, payload, effects);
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

    fn admits_snapshot(&self, _: GroupId, _: ReplicaId, _: &SnapshotMeta) -> bool {
        true
    }

    fn never_lost(&self, _group: GroupId) -> bool {
        true
    }

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

    fn last_destroyed(&self, group: GroupId) -> Option<ReplicaId> {
        self.buried.lock().contains(&group).then_some(ReplicaId(group.0))
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
    let machine = Arc::new(Echo {
        gate: parking_lot::RwLock::new(()),
        epochs: Mutex::default(),
        buried: Mutex::default(),
    });
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

    fn change(&self, group: u64, epoch: u64, other: u8) -> Answer {
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |answer| drop(sender.send(answer)));
        self.raft.change_group(GroupId(group), epoch, Bytes::from(vec![other]), reply);
        receiver.recv_timeout(PATIENCE).unwrap()
    }

    /// Waits until a group leads here, or until it has no replica here.
    fn await_led(&self, group: u64, is_led: bool) {
        let began = std::time::Instant::now();
        let is_so = || match self.raft.status(GroupId(group)) {
            Some(_) => is_led && self.raft.could_read(GroupId(group)),
            None => !is_led,
        };
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "group {group}: {is_led}");
            thread::yield_now();
        }
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
fn a_proposal_without_commands_is_an_entry_that_is_applied() {
    let fixture = start();
    let before = fixture.read(1).unwrap();
    let answer = fixture.propose(1, &[]).recv_timeout(PATIENCE).unwrap();
    assert_eq!(answer, Ok(Vec::new()));
    assert_eq!(fixture.read(1).unwrap(), before.next());
    let gate = fixture.machine.gate.write();
    let waiting = [&[b"a" as &[u8]][..], &[], &[b"b", b"c"]];
    let answers = waiting.map(|payloads| fixture.propose(1, payloads));
    drop(gate);
    for (payloads, answer) in waiting.iter().zip(answers) {
        assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), echo(payloads));
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

#[test]
fn a_change_takes_effect_at_its_epoch_only() {
    let fixture = start();
    fixture.await_led(1, true);
    assert!(matches!(fixture.change(1, 2, 3), Err(RequestError::Refused(_))));
    assert_eq!(fixture.change(1, 1, 3), echo(&[b""]));
    assert!(matches!(fixture.change(1, 1, 4), Err(RequestError::Refused(_))));
    assert_eq!(fixture.change(1, 2, 4), echo(&[b""]));
    // The next answer comes after the worker took the change up.
    assert!(matches!(fixture.change(1, 2, 5), Err(RequestError::Refused(_))));
    assert_eq!(fixture.raft.status(GroupId(1)).unwrap().epoch, 3);
}

#[test]
fn what_is_born_elects_at_once_and_what_is_absorbed_is_gone_with_its_log() {
    let fixture = start();
    fixture.await_led(1, true);
    fixture.change(1, 1, 3).unwrap();
    fixture.await_led(3, true);
    let answer = fixture.propose(3, &[b"x"]).recv_timeout(PATIENCE).unwrap();
    assert_eq!(answer, echo(&[b"x"]));
    fixture.change(1, 2, 3).unwrap();
    fixture.await_led(3, false);
    assert_eq!(fixture.log.groups(), [GroupId(1), GroupId(2)]);
    // It was here: nothing brings it back.
    fixture.raft.add_replica(descriptor(3, false));
    assert!(fixture.read(1).is_ok());
    assert!(fixture.raft.status(GroupId(3)).is_none());
}

#[test]
fn a_replica_of_a_group_that_is_created_can_be_added_more_than_once() {
    let fixture = start();
    fixture.raft.add_replica(descriptor(4, false));
    fixture.raft.add_replica(descriptor(4, false));
    fixture.await_led(4, true);
    let answer = fixture.propose(4, &[b"x"]).recv_timeout(PATIENCE).unwrap();
    assert_eq!(answer, echo(&[b"x"]));
    fixture.raft.add_replica(descriptor(4, false));
    let again = fixture.propose(4, &[b"y"]).recv_timeout(PATIENCE).unwrap();
    assert_eq!(again, echo(&[b"y"]));
}
