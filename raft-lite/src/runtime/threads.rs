//! What each kind of thread does, from its start to its end.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::index_of;
use crate::{
    applier::{Applier, ApplyTask},
    worker::{Input, Worker},
};

/// Inputs, and bytes of what they may add to the log, that a worker takes in before it
/// runs a round.
const INPUTS_PER_ROUND: usize = 4096;
const BYTES_PER_ROUND: usize = 64 << 20;
/// Tasks, and bytes of entries, that an applier takes as one batch: those at its
/// end are not answered before all of it is applied.
const TASKS_PER_BATCH: usize = 256;
const BYTES_PER_BATCH: usize = 1 << 20;

/// Starts a thread whose panic ends the process: a node must not go on with
/// some of its threads gone.
pub(super) fn spawn(
    name: String,
    stack_bytes: Option<usize>,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let mut builder = thread::Builder::new().name(name.clone());
    if let Some(bytes) = stack_bytes {
        builder = builder.stack_size(bytes);
    }
    builder.spawn(move || {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            eprintln!("raft-kv: thread {name} panicked; stopping at once, restart the node");
            process::abort();
        }
    })
}

pub(super) fn run_worker(
    mut worker: Worker,
    inbox: Receiver<Input>,
    queues: Vec<Sender<ApplyTask>>,
) {
    loop {
        let mut stopping = false;
        match inbox.recv_timeout(worker.until_tick()) {
            Ok(first) => {
                let mut bytes = 0;
                for input in std::iter::once(first).chain(inbox.try_iter()).take(INPUTS_PER_ROUND) {
                    stopping |= matches!(input, Input::Stop);
                    bytes += input.bytes();
                    worker.handle(input);
                    if bytes >= BYTES_PER_ROUND {
                        break;
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => stopping = true,
        }
        match worker.round() {
            Ok(tasks) => {
                for task in tasks {
                    let queue = &queues[index_of(task.group(), queues.len())];
                    // Fails only if the applier is gone; dropping answers.
                    let _ = queue.send(task);
                }
            }
            Err(error) => {
                // What is on disk is unknown now. Only a restart can find out.
                eprintln!(
                    "raft-kv: {error}; stopping at once: check the disk and restart the node"
                );
                process::abort();
            }
        }
        if stopping {
            worker.stop();
            return;
        }
    }
}

pub(super) fn run_applier(
    applier: Applier,
    tasks: Receiver<ApplyTask>,
    aside: Sender<ApplyTask>,
    stopping: &AtomicBool,
) {
    while let Ok(first) = tasks.recv() {
        if stopping.load(Ordering::Relaxed) {
            // Dropping a task answers it, and the log has its entries.
            continue;
        }
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        while batch.len() < TASKS_PER_BATCH
            && bytes < BYTES_PER_BATCH
            && let Ok(next) = tasks.try_recv()
        {
            bytes += next.bytes();
            batch.push(next);
        }
        // Fails only if nobody is there any more; dropping answers.
        applier.run(batch, |task| drop(aside.send(task)));
    }
}

/// Does what takes long, one after the other, until all appliers have ended.
pub(super) fn run_aside(applier: Applier, tasks: Receiver<ApplyTask>, stopping: &AtomicBool) {
    while let Ok(task) = tasks.recv() {
        if !stopping.load(Ordering::Relaxed) {
            applier.run_long(task);
        }
    }
}
