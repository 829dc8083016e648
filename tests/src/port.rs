//! Ports that no other test and no outgoing connection takes.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the range from which systems take the ports of outgoing connections: a
/// client that connects to a node which is down could else be given the node's
/// own port, and keep it from starting again.
const FIRST: u16 = 21_000;
const LAST: u16 = 31_000;

/// A port of 127.0.0.1 that is this test's as long as this value lives, whether
/// or not anyone listens on it.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    /// Locked; the lock goes with the process, however it ends.
    _lock: File,
}

impl ReservedPort {
    /// A free port.
    ///
    /// # Panics
    /// If there is none.
    pub fn take() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let folder = env::temp_dir().join("raft-kv-test-ports");
        fs::create_dir_all(&folder).expect("the folder for temporary files is writable");
        // Processes begin at different places, to seldom meet.
        let begin = (std::process::id() % 100) as u16 * 100;
        for _ in FIRST..LAST {
            let offset = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let number = FIRST + offset % (LAST - FIRST);
            let lock = File::create(folder.join(number.to_string()));
            let lock = lock.expect("the folder for temporary files is writable");
            if lock.try_lock().is_err() {
                continue;
            }
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no port from {FIRST} to {LAST} is free");
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}
