//! One node's stream: requests of many tasks go over it, and their answers come
//! back in any order.
//!
//! A request is put into the stream's queue at once. Whatever is in the queue when
//! the connection can take more goes out in one frame, so the more there is to
//! do, the less each request costs, and a lone request waits for nothing.
//!
//! Invariants:
//! - The queue is bounded: when it is full, callers wait for room until the time
//!   their attempt has.
//! - A place among those who wait is given back when the answer comes, when the
//!   attempt's time is over, when the caller's future is dropped, and when the
//!   stream breaks. An answer that comes later finds nobody and is dropped.
//! - When a stream breaks, all who wait learn it at once; the next request makes
//!   a new stream.
//! - There is no timer for each request: while any wait, the stream's task looks
//!   through them every few milliseconds.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::stream;
use raft_kv_proto::v1::{
    OperationError, PipelineRequest, pipeline_request, pipeline_response,
    state_machine_client::StateMachineClient,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::AbortHandle,
    time::{sleep, timeout_at},
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    channel::{Health, Node},
    client::{machine, set_direct},
    error::is_connect,
};

/// Requests that may wait for the connection, before callers wait for room.
const QUEUED_REQUESTS: usize = 4096;
/// How often those who wait are looked through, and after how many times with
/// none of them no more.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);
const IDLE_SWEEPS: u32 = 200;
/// A node that said nothing for half the time of an attempt that ran out, and for
/// so long at least, is silent.
const SHORTEST_SILENCE: Duration = Duration::from_millis(100);

pub(crate) type Request = pipeline_request::Request;
pub(crate) type Reply = pipeline_response::Result;

/// Why a request got no answer.
#[derive(Clone, Debug)]
pub(crate) enum Lost {
    /// There is no connection: it was not sent.
    Unreachable(Arc<Status>),
    /// The stream ended.
    Broken(Arc<str>),
    /// The time of the attempt is over.
    Late,
}

/// The stream to a node; made when first needed, and anew when it broke.
#[derive(Debug)]
pub(crate) struct Pipeline {
    /// Whether the node shall not forward what comes over the stream.
    direct: bool,
    current: Mutex<Option<Arc<Open>>>,
}

/// A stream that was opened, and may have ended since.
#[derive(Debug)]
struct Open {
    requests: mpsc::Sender<PipelineRequest>,
    waiting: Arc<Waiting>,
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pipeline {
    pub fn new(direct: bool) -> Self {
        Self { direct, current: Mutex::new(None) }
    }

    /// Sends a request to `node`, whose pipeline this is, and waits for the answer
    /// until `by`.
    pub async fn ask(
        &self,
        node: &Node,
        request: Request,
        now: Instant,
        by: Instant,
    ) -> Result<Reply, Lost> {
        // A stream may end while this waits for room in it; then there is a new one.
        for _ in 0..2 {
            let stream = self.open(node);
            let room = match stream.requests.try_reserve() {
                Ok(room) => room,
                Err(mpsc::error::TrySendError::Closed(())) => continue,
                Err(mpsc::error::TrySendError::Full(())) => {
                    match timeout_at(by.into(), stream.requests.reserve()).await {
                        Ok(Ok(room)) => room,
                        Ok(Err(_)) => continue,
                        Err(_) => return Err(Lost::Late),
                    }
                }
            };
            let Some((tag, answer)) = stream.waiting.enter(now, by) else {
                continue;
            };
            let mut place = Place { waiting: &stream.waiting, tag: Some(tag) };
            room.send(PipelineRequest { tag, request: Some(request) });
            let answer = answer.await;
            place.tag = None;
            return answer.unwrap_or_else(|_| Err(Lost::Broken("it ended".into())));
        }
        Err(Lost::Broken("it ends as soon as it is opened".into()))
    }

    /// The stream, which may just be connecting.
    fn open(&self, node: &Node) -> Arc<Open> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(open) if !open.requests.is_closed() => open.clone(),
            _ => current.insert(self.start(node)).clone(),
        }
    }

    fn start(&self, node: &Node) -> Arc<Open> {
        let (requests, queue) = mpsc::channel(QUEUED_REQUESTS);
        let waiting = Arc::new(Waiting::default());
        let client = machine(node.channel.clone());
        let run = run(client, self.direct, queue, waiting.clone(), node.health.clone());
        let task = tokio::spawn(run).abort_handle();
        Arc::new(Open { requests, waiting, task })
    }
}

/// The task of a stream, to its end.
async fn run(
    client: StateMachineClient<Channel>,
    direct: bool,
    queue: mpsc::Receiver<PipelineRequest>,
    waiting: Arc<Waiting>,
    health: Arc<Health>,
) {
    // However the task ends, nobody waits any longer.
    let end = End(&waiting);
    let why = tokio::select! {
        biased;
        why = exchange(client, direct, queue, &waiting, &health) => why,
        never = sweep(&waiting, direct.then_some(&health)) => match never {},
    };
    waiting.close(&why);
    drop(end);
}

/// Sends what is in the queue and hands out the answers, until the stream ends.
async fn exchange(
    mut client: StateMachineClient<Channel>,
    direct: bool,
    mut queue: mpsc::Receiver<PipelineRequest>,
    waiting: &Waiting,
    health: &Health,
) -> Lost {
    let requests = stream::poll_fn(move |context| queue.poll_recv(context));
    let mut request = tonic::Request::new(requests);
    if direct {
        set_direct(request.metadata_mut());
    }
    let mut answers = match client.pipeline(request).await {
        Ok(answers) => answers.into_inner(),
        Err(status) if is_connect(&status) => {
            health.unreachable(Instant::now());
            return Lost::Unreachable(Arc::new(status));
        }
        Err(status) => return Lost::Broken(status.message().into()),
    };
    loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                health.heard();
                waiting.answer(answer.tag, answer.result.unwrap_or_else(nothing));
            }
            Ok(None) => return Lost::Broken("the node ended the stream".into()),
            Err(status) => return Lost::Broken(status.message().into()),
        }
    }
}

/// What an answer without a result is taken for.
fn nothing() -> Reply {
    let message = "an answer with nothing".to_owned();
    Reply::Error(OperationError { code: Code::Internal.into(), message, detail: None })
}

/// Ends attempts whose time is over; rests while nobody waits. If `health` is
/// given, a node that said nothing meanwhile is taken to be silent.
async fn sweep(waiting: &Waiting, health: Option<&Arc<Health>>) -> Infallible {
    loop {
        waiting.someone.notified().await;
        while !waiting.may_rest() {
            sleep(SWEEP_INTERVAL).await;
            let now = Instant::now();
            if waiting.sweep(now)
                && let Some(health) = health
            {
                health.silent(now);
            }
        }
    }
}

/// Closes the stream for those who wait, if its task is dropped.
struct End<'a>(&'a Waiting);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.close(&Lost::Broken("its task was ended".into()));
    }
}

/// A caller's place among those who wait; given back when it is dropped.
struct Place<'a> {
    waiting: &'a Waiting,
    tag: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(tag) = self.tag {
            // It is nobody's answer any more.
            drop(self.waiting.lock().take(tag));
        }
    }
}

/// Those who wait for an answer.
#[derive(Debug, Default)]
struct Waiting {
    places: Mutex<Places>,
    /// Told when someone waits again after a time in which nobody did.
    someone: Notify,
}

#[derive(Debug, Default)]
struct Places {
    closed: bool,
    all: Vec<PlaceOf>,
    free: Vec<u32>,
    taken: usize,
    /// Whether sweeps go on, and how many since someone waited.
    swept: bool,
    idle_sweeps: u32,
    /// Whether an answer came since the last sweep, and when one came last.
    heard: bool,
    last_heard: Option<Instant>,
}

/// A place that is used again and again: by how many callers before, and by whom.
#[derive(Debug, Default)]
struct PlaceOf {
    round: u32,
    waiter: Option<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<Result<Reply, Lost>>,
    since: Instant,
    by: Instant,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place; `None` if the stream has ended.
    fn enter(
        &self,
        since: Instant,
        by: Instant,
    ) -> Option<(u64, oneshot::Receiver<Result<Reply, Lost>>)> {
        let (answer, receiver) = oneshot::channel();
        let mut places = self.lock();
        if places.closed {
            return None;
        }
        let tag = places.put(Waiter { answer, since, by });
        if !std::mem::replace(&mut places.swept, true) {
            self.someone.notify_one();
        }
        Some((tag, receiver))
    }

    fn answer(&self, tag: u64, reply: Reply) {
        let mut places = self.lock();
        places.heard = true;
        let waiter = places.take(tag);
        drop(places);
        if let Some(waiter) = waiter {
            // If the caller is gone it needs no answer.
            let _ = waiter.answer.send(Ok(reply));
        }
    }

    fn close(&self, why: &Lost) {
        let mut places = self.lock();
        places.closed = true;
        for waiter in places.all.iter_mut().filter_map(|place| place.waiter.take()) {
            let _ = waiter.answer.send(Err(why.clone()));
        }
    }

    /// Whether nobody waits any more, so that the sweeps may stop until someone
    /// does.
    fn may_rest(&self) -> bool {
        let mut places = self.lock();
        if places.idle_sweeps >= IDLE_SWEEPS {
            places.idle_sweeps = 0;
            places.swept = false;
        }
        !places.swept
    }

    /// Ends the attempts whose time is over. Tells whether nothing was heard in
    /// the time of one of them.
    fn sweep(&self, now: Instant) -> bool {
        let mut places = self.lock();
        if std::mem::take(&mut places.heard) {
            places.last_heard = Some(now);
        }
        if places.taken == 0 {
            places.idle_sweeps += 1;
            return false;
        }
        places.idle_sweeps = 0;
        let mut silent = false;
        for index in 0..places.all.len() {
            let late = |waiter: &mut Waiter| waiter.by <= now;
            let Some(waiter) = places.all[index].waiter.take_if(late) else {
                continue;
            };
            places.leave(index);
            let heard = places.last_heard.map_or(waiter.since, |heard| heard.max(waiter.since));
            let silence = now.saturating_duration_since(heard);
            silent |= silence >= SHORTEST_SILENCE.max((waiter.by - waiter.since) / 2);
            let _ = waiter.answer.send(Err(Lost::Late));
        }
        silent
    }
}

impl Places {
    /// Gives the waiter a place; its tag names the place and the round.
    fn put(&mut self, waiter: Waiter) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.all.push(PlaceOf::default());
            u32::try_from(self.all.len() - 1).expect("fewer than 2^32 callers fit in memory")
        });
        self.taken += 1;
        let place = &mut self.all[index as usize];
        place.waiter = Some(waiter);
        u64::from(place.round) << 32 | u64::from(index)
    }

    /// The one who waits under a tag, if still there.
    fn take(&mut self, tag: u64) -> Option<Waiter> {
        let index = tag as u32 as usize;
        let place = self.all.get_mut(index).filter(|p| u64::from(p.round) == tag >> 32)?;
        let waiter = place.waiter.take()?;
        self.leave(index);
        Some(waiter)
    }

    /// Frees a place whose waiter was taken out of it.
    fn leave(&mut self, index: usize) {
        let place = &mut self.all[index];
        place.round = place.round.wrapping_add(1);
        self.taken -= 1;
        self.free.push(index as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> Reply {
        Reply::Get(raft_kv_proto::v1::GetResponse::default())
    }

    #[test]
    fn an_answer_reaches_the_caller_of_its_tag_only() {
        let (waiting, now) = (Waiting::default(), Instant::now());
        let (first, mut to_first) = waiting.enter(now, now).unwrap();
        let (second, mut to_second) = waiting.enter(now, now).unwrap();
        waiting.answer(second, reply());
        assert!(to_second.try_recv().unwrap().is_ok());
        assert!(to_first.try_recv().is_err());
        drop(Place { waiting: &waiting, tag: Some(first) });
        let (third, mut to_third) = waiting.enter(now, now).unwrap();
        assert_eq!(third as u32, first as u32, "the place is used again");
        waiting.answer(first, reply());
        assert!(to_third.try_recv().is_err(), "a late answer is nobody's");
        waiting.answer(third, reply());
        assert!(to_third.try_recv().unwrap().is_ok());
        assert_eq!(waiting.lock().taken, 0);
    }

    #[test]
    fn what_is_late_ends_and_the_rest_goes_on() {
        let (waiting, start) = (Waiting::default(), Instant::now());
        let second = Duration::from_secs(1);
        let (_, mut short) = waiting.enter(start, start + second).unwrap();
        let (long, mut longer) = waiting.enter(start, start + 3 * second).unwrap();
        assert!(!waiting.sweep(start + second / 2));
        assert!(waiting.sweep(start + second), "nothing was heard");
        assert!(matches!(short.try_recv().unwrap(), Err(Lost::Late)));
        assert!(longer.try_recv().is_err());
        let (_, mut other) = waiting.enter(start + second, start + 2 * second).unwrap();
        waiting.answer(u64::MAX, reply());
        assert!(!waiting.sweep(start + 2 * second), "a late answer is a sign of life");
        assert!(other.try_recv().unwrap().is_err());
        waiting.answer(long, reply());
        assert!(longer.try_recv().unwrap().is_ok());
    }

    #[test]
    fn all_who_wait_learn_that_the_stream_broke() {
        let (waiting, now) = (Waiting::default(), Instant::now());
        let mut answers: Vec<_> = (0..3).map(|_| waiting.enter(now, now).unwrap().1).collect();
        waiting.close(&Lost::Broken("x".into()));
        for answer in &mut answers {
            assert!(matches!(answer.try_recv().unwrap(), Err(Lost::Broken(_))));
        }
        assert!(waiting.enter(now, now).is_none());
    }
}
