//! A connection whose small writes go out together.
//!
//! HTTP/2 flushes after each answer, and a system call for each costs more than
//! most answers do. Here a flush lets all other tasks that are ready run first, and
//! then sends what they wrote, too. Nothing waits when there is nothing else to do.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered at the most.
const GATHERED_BYTES: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub struct Coalesced<T> {
    inner: T,
    gathered: BytesMut,
    /// The others were let run since the last flush.
    yielded: bool,
}

impl<T> Coalesced<T> {
    /// Gathers what is written to `inner`.
    pub fn new(inner: T) -> Self {
        Coalesced { inner, gathered: BytesMut::new(), yielded: false }
    }
}

impl<T: AsyncWrite + Unpin> Coalesced<T> {
    /// Sends all that was gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.gathered))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Coalesced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalesced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() + bytes.len() > GATHERED_BYTES {
            ready!(self.poll_send(cx))?;
            if bytes.len() > GATHERED_BYTES {
                return Pin::new(&mut self.inner).poll_write(cx, bytes);
            }
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() && !std::mem::replace(&mut self.yielded, true) {
            // A task that wakes itself runs again after those that are ready.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_send(cx))?;
        self.yielded = false;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            match self.as_mut().poll_write(cx, part) {
                Poll::Ready(Ok(count)) => {
                    written += count;
                    if count < part.len() {
                        break;
                    }
                }
                // What was taken is not given back.
                _ if written > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn everything_written_arrives_in_order() {
        let (near, mut far) = duplex(1 << 10);
        let expected: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let sent = expected.clone();
        let sending = tokio::spawn(async move {
            let mut near = Coalesced::new(near);
            for (n, part) in sent.chunks(7919).enumerate() {
                near.write_all(part).await.unwrap();
                if n % 3 == 0 {
                    near.flush().await.unwrap();
                }
            }
            near.write_all(&[]).await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        sending.await.unwrap();
        assert_eq!(received, expected);
    }

    #[tokio::test]
    async fn a_large_write_goes_through_and_a_flush_ends() {
        let (near, mut far) = duplex(1 << 20);
        let mut near = Coalesced::new(near);
        near.write_all(b"small").await.unwrap();
        near.write_all(&vec![1; GATHERED_BYTES + 1]).await.unwrap();
        near.flush().await.unwrap();
        let mut received = vec![0; 5 + GATHERED_BYTES + 1];
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(&received[..6], b"small\x01");
    }

    #[tokio::test]
    async fn a_flush_lets_others_run_first() {
        let (near, _far) = duplex(1 << 10);
        let mut near = Coalesced::new(near);
        let other = tokio::spawn(async {});
        near.write_all(b"x").await.unwrap();
        assert!(!other.is_finished());
        near.flush().await.unwrap();
        assert!(other.is_finished());
    }
}
