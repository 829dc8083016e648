//! How a cluster is born, at most once.
//!
//! Every node of a new cluster is started with the same list of members, in any
//! order. The first of the list, the *founder*, waits until it has met all others
//! and none of them belongs to a cluster; then it makes up the cluster's id and
//! puts it on its disk, and from that moment on the cluster is born. The others
//! learn of it from whoever belongs to it already.
//!
//! Each data folder has a random number from the time it was new, and the founder
//! notes the members' numbers. So a member whose folder was lost is told from one
//! that comes late. It was a voter, its votes and its log are gone, and it must not
//! vote again as if it had never voted: it comes back without any replica, and is
//! given new ones.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use parking_lot::Mutex;
use raft_kv_proto::v1::{self, MeetRequest, MeetResponse};
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::{PROTOCOL, dial};

/// Between two rounds of asking the others.
const PAUSE: Duration = Duration::from_millis(100);
/// An answer takes at most so long.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its id.
    pub node_id: String,
    /// `host:port` that it is reached at.
    pub address: String,
    /// The number of its data folder; 0 where it is not known.
    pub folder: u64,
}

/// What a cluster is founded with; the same on all its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// The members, in the order of their ids.
    pub members: Vec<Member>,
    /// Number of slots.
    pub slots: u32,
    /// Number of shards.
    pub shards: u32,
    /// SHA-256 of the plugin, in hex.
    pub plugin: String,
}

impl Born {
    /// Whether it was born with another data folder of this member: what that held
    /// is lost.
    pub fn knew_another_folder(&self, me: &Member) -> bool {
        let known = self.founding.members.iter().find(|member| member.node_id == me.node_id);
        known.is_none_or(|known| known.folder != me.folder)
    }
}

/// A cluster that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Born {
    /// Its id.
    pub cluster_id: String,
    /// What it was founded with, the members' folders included.
    pub founding: Founding,
}

/// Why this node can not take part in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BirthError {
    /// Two nodes were started with different ideas of the cluster.
    #[error(
        "this node was started for {mine}, but node {other} for {theirs}: start all nodes of a new \
         cluster with the same --cluster, --slots, --shards and --plugin"
    )]
    Contradiction {
        /// The other node.
        other: String,
        /// What this node was told.
        mine: String,
        /// What the other was told.
        theirs: String,
    },
    /// There is another node where a member should be.
    #[error("at {address} there is node {found}, not {expected}: is --cluster right?")]
    OtherNode {
        /// The address.
        address: String,
        /// Who answers.
        found: String,
        /// Who should.
        expected: String,
    },
    /// The nodes do not understand each other.
    #[error(
        "node {other} speaks version {found} of the protocol between nodes, this node version \
         {PROTOCOL}: run the same version of RaftKV on all nodes"
    )]
    Protocol {
        /// The other node.
        other: String,
        /// Its version.
        found: u32,
    },
}

impl Founding {
    /// Whether another was told the same; folders do not count.
    fn agrees_with(&self, other: &Founding) -> bool {
        self.describe() == other.describe()
    }

    fn describe(&self) -> String {
        let members = self.members.iter().map(|m| format!("{}={}", m.node_id, m.address));
        let members: Vec<String> = members.collect();
        let (slots, shards) = (self.slots, self.shards);
        let plugin = self.plugin.get(..12).unwrap_or(&self.plugin);
        format!("{} with {slots} slots, {shards} shards and plugin {plugin}", members.join(","))
    }

    fn to_wire(&self) -> v1::Founding {
        v1::Founding {
            members: self.members.iter().map(Member::to_wire).collect(),
            slots: self.slots,
            shards: self.shards,
            plugin: self.plugin.clone(),
        }
    }

    fn from_wire(founding: v1::Founding) -> Self {
        let v1::Founding { members, slots, shards, plugin } = founding;
        let members = members.into_iter().map(Member::from_wire).collect();
        Founding { members, slots, shards, plugin }
    }
}

impl Member {
    fn to_wire(&self) -> v1::Member {
        let Member { node_id, address, folder } = self.clone();
        v1::Member { node_id, address, folder }
    }

    fn from_wire(member: v1::Member) -> Self {
        let v1::Member { node_id, address, folder } = member;
        Member { node_id, address, folder }
    }
}

/// How this node introduces itself to others, before and after the birth.
#[derive(Clone)]
pub struct Introduction {
    state: Arc<Mutex<State>>,
}

struct State {
    me: Member,
    founding: Founding,
    cluster_id: Option<String>,
    /// Whom this node waits for, and why.
    missing: Vec<String>,
}

impl Introduction {
    /// A node that belongs to no cluster yet.
    pub fn unborn(me: Member, founding: Founding) -> Self {
        let state = State { me, founding, cluster_id: None, missing: Vec::new() };
        Introduction { state: Arc::new(Mutex::new(state)) }
    }

    /// A member of a cluster.
    pub fn born(me: Member, born: Born) -> Self {
        let introduction = Self::unborn(me, born.founding.clone());
        introduction.bear(born);
        introduction
    }

    fn bear(&self, born: Born) {
        let mut state = self.state.lock();
        state.founding = born.founding;
        state.cluster_id = Some(born.cluster_id);
        state.missing.clear();
    }

    /// Answers a node that asks.
    pub fn meet(&self, request: &MeetRequest) -> Result<MeetResponse, Status> {
        if request.protocol != PROTOCOL {
            let other = request.from.as_ref().map(|from| from.node_id.clone()).unwrap_or_default();
            let error = BirthError::Protocol { other, found: request.protocol };
            return Err(Status::failed_precondition(error.to_string()));
        }
        let state = self.state.lock();
        Ok(MeetResponse {
            protocol: PROTOCOL,
            from: Some(state.me.to_wire()),
            founding: Some(state.founding.to_wire()),
            cluster_id: state.cluster_id.clone().unwrap_or_default(),
        })
    }

    /// Why the cluster is not born yet.
    pub fn waits_for(&self) -> String {
        let missing = self.state.lock().missing.join(", ");
        match missing.as_str() {
            "" => "the cluster is not born yet".to_owned(),
            missing => format!("the cluster is not born yet: waiting for {missing}"),
        }
    }

    fn request(&self) -> MeetRequest {
        let state = self.state.lock();
        MeetRequest {
            protocol: PROTOCOL,
            from: Some(state.me.to_wire()),
            founding: Some(state.founding.to_wire()),
        }
    }

    /// Notes whom this node waits for, and says so when that changes.
    fn set_missing(&self, missing: Vec<String>) {
        let mut state = self.state.lock();
        if state.missing != missing {
            tracing::info!("waiting for {}", missing.join(", "));
            state.missing = missing;
        }
    }
}

/// Waits until this node's cluster is born, or founds it if that is this node's
/// task and all others are there. `found` puts a cluster on disk before anybody
/// learns of it.
pub async fn find_cluster<E: From<BirthError>>(
    introduction: &Introduction,
    others: &[(Member, String)],
    mut found: impl FnMut(&Born) -> Result<(), E>,
) -> Result<Born, E> {
    let (me, founding) = {
        let state = introduction.state.lock();
        (state.me.clone(), state.founding.clone())
    };
    let founder = founding.members.first().is_some_and(|first| first.node_id == me.node_id);
    loop {
        let request = introduction.request();
        let asked = others.iter().map(|(member, dial)| ask(member, dial, request.clone()));
        let mut missing = BTreeSet::new();
        let mut members = vec![me.clone()];
        for ((expected, _), answer) in others.iter().zip(join_all(asked).await) {
            match answer {
                Ok(answer) => match check(&founding, expected, answer)? {
                    Met::Born(born) => {
                        found(&born)?;
                        introduction.bear(born.clone());
                        return Ok(born);
                    }
                    Met::Unborn(member) => members.push(member),
                },
                Err(reason) => {
                    let Member { node_id, address, .. } = expected;
                    missing.insert(format!("{node_id} at {address} ({reason})"));
                }
            }
        }
        if founder && missing.is_empty() {
            members.sort();
            let born = Born {
                cluster_id: format!("{:032x}", rand::random::<u128>()),
                founding: Founding { members, ..founding },
            };
            found(&born)?;
            introduction.bear(born.clone());
            return Ok(born);
        }
        introduction.set_missing(missing.into_iter().collect());
        sleep(PAUSE).await;
    }
}

/// What a member turned out to be.
enum Met {
    Born(Born),
    /// It belongs to no cluster; its folder is known.
    Unborn(Member),
}

fn check(founding: &Founding, expected: &Member, answer: MeetResponse) -> Result<Met, BirthError> {
    let other = expected.node_id.clone();
    if answer.protocol != PROTOCOL {
        return Err(BirthError::Protocol { other, found: answer.protocol });
    }
    let from = answer.from.map(Member::from_wire).unwrap_or_else(|| expected.clone());
    if from.node_id != expected.node_id {
        let (address, found) = (expected.address.clone(), from.node_id);
        return Err(BirthError::OtherNode { address, found, expected: other });
    }
    let theirs = Founding::from_wire(answer.founding.unwrap_or_default());
    if !theirs.agrees_with(founding) {
        let (mine, theirs) = (founding.describe(), theirs.describe());
        return Err(BirthError::Contradiction { other, mine, theirs });
    }
    if answer.cluster_id.is_empty() {
        return Ok(Met::Unborn(Member { folder: from.folder, ..expected.clone() }));
    }
    Ok(Met::Born(Born { cluster_id: answer.cluster_id, founding: theirs }))
}

/// Asks a member how things are; the error says why it does not answer.
async fn ask(member: &Member, address: &str, request: MeetRequest) -> Result<MeetResponse, String> {
    let asking = async {
        let endpoint = dial::endpoint(address).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|_| "not reachable".to_owned())?;
        let answer = dial::client(channel).meet(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| dial::describe(&status))
    };
    match timeout(ANSWER_WITHIN, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer from {}", member.node_id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u64, folder: u64) -> Member {
        Member { node_id: format!("node{number}"), address: format!("127.0.0.1:{number}"), folder }
    }

    fn founding(folders: [u64; 3]) -> Founding {
        let members = (1..).zip(folders).map(|(number, folder)| member(number, folder)).collect();
        Founding { members, slots: 256, shards: 4, plugin: "p".into() }
    }

    fn answer(number: u64, founding: Founding, cluster: Option<&str>) -> MeetResponse {
        let introduction = match cluster {
            None => Introduction::unborn(member(number, 70 + number), founding),
            Some(id) => Introduction::born(
                member(number, 70 + number),
                Born { cluster_id: id.into(), founding },
            ),
        };
        let request = MeetRequest { protocol: PROTOCOL, ..Default::default() };
        introduction.meet(&request).unwrap()
    }

    fn check_as(answer: MeetResponse) -> Result<Met, BirthError> {
        check(&founding([0; 3]), &member(2, 0), answer)
    }

    #[test]
    fn a_member_that_belongs_to_no_cluster_is_met_with_its_folder() {
        let met = check_as(answer(2, founding([0; 3]), None)).unwrap();
        assert!(matches!(met, Met::Unborn(member) if member.folder == 72));
    }

    #[test]
    fn a_born_cluster_knows_the_folders_it_was_born_with() {
        let answer = answer(2, founding([71, 72, 73]), Some("c"));
        let Ok(Met::Born(born)) = check_as(answer) else { panic!("it is born") };
        assert_eq!(born.cluster_id, "c");
        assert!(!born.knew_another_folder(&member(1, 71)));
        assert!(born.knew_another_folder(&member(1, 99)));
    }

    #[test]
    fn contradictions_are_noticed() {
        let other = Founding { shards: 5, ..founding([0; 3]) };
        let met = check_as(answer(2, other, None));
        assert!(matches!(met, Err(BirthError::Contradiction { .. })));
        let mut other = founding([0; 3]);
        other.members.pop();
        let met = check_as(answer(2, other, None));
        assert!(matches!(met, Err(BirthError::Contradiction { .. })));
        let met = check_as(answer(3, founding([0; 3]), None));
        assert!(matches!(met, Err(BirthError::OtherNode { .. })));
    }
}
