//! A TCP proxy that stands in a link and can be cut.
//!
//! A link that is cut passes nothing on and closes nothing, like a network that
//! loses every packet: what was sent arrives when the link is mended.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Between two looks at whether the proxy is over.
const POLL: Duration = Duration::from_millis(20);

/// See the module. Dropping it closes all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    cut: Mutex<bool>,
    mended: Condvar,
    over: AtomicBool,
}

impl Proxy {
    /// A proxy before `target`, on a port of its own.
    ///
    /// # Panics
    /// If the system has no port left.
    pub fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("the system allows it");
        let shared = Arc::new(Shared {
            target,
            cut: Mutex::new(false),
            mended: Condvar::new(),
            over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes nothing on from now on.
    pub fn cut(&self) {
        *self.shared.lock() = true;
    }

    /// Passes everything on again.
    pub fn mend(&self) {
        *self.shared.lock() = false;
        self.shared.mended.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.mend();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, bool> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits while the link is cut.
    fn pass(&self) {
        let mut cut = self.lock();
        while *cut && !self.is_over() {
            cut = self.mended.wait(cut).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        while !self.is_over() {
            match listener.accept() {
                Ok((near, _)) => {
                    let shared = Arc::clone(&self);
                    thread::spawn(move || shared.connect(near));
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    fn connect(self: Arc<Self>, near: TcpStream) {
        self.pass();
        let Ok(far) = TcpStream::connect(self.target) else { return };
        let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return };
        let back = Arc::clone(&self);
        thread::spawn(move || back.copy(far_too, near_too));
        self.copy(near, far);
    }

    fn copy(&self, from: TcpStream, to: TcpStream) {
        // Either end may be gone.
        let _ = self.copy_all(&from, &to);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn copy_all(&self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        from.set_nonblocking(false)?;
        from.set_read_timeout(Some(POLL))?;
        to.set_nodelay(true)?;
        let mut buffer = [0; 64 << 10];
        while !self.is_over() {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    self.pass();
                    to.write_all(&buffer[..length])?;
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
