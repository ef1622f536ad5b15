//! `ClientSocket`: one client's socket, with three judgements that hyper leaves to us: how long a reader may stall a write, whether an end of
//! input means that the client is gone or only done sending, and that small writes are not held back (TCP_NODELAY).
//!
//! A closed and a half-closed client look the same: input ends. hyper would abort the request at once, which robs clients that shut their
//! sending side after the request; ignoring it would run requests for nobody. So the end of input is shown to hyper only after `EOF_GRACE`,
//! and a write that went through well after an earlier one proves that the client lives (a dead one answers the first with a reset).

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// How long a running request outlives the end of its client's input.
const EOF_GRACE: Duration = Duration::from_millis(1500);
/// Time after which a dead client's reset has surely arrived.
const RESET_TIME: Duration = Duration::from_millis(300);
/// Longest time a write may wait for a client that does not read.
const WRITE_STALL: Duration = Duration::from_secs(120);

/// Requests of one connection that are being answered.
pub(crate) type NumBusy = Arc<AtomicUsize>;

/// A client's socket.
pub(crate) struct ClientSocket {
    stream: TcpStream,
    num_busy: NumBusy,
    end: Option<EndOfInput>,
    write_stall: Option<Pin<Box<Sleep>>>,
}

struct EndOfInput {
    grace: Pin<Box<Sleep>>,
    first_write: Option<Instant>,
}

impl ClientSocket {
    pub(crate) fn new(stream: TcpStream, num_busy: NumBusy) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        ClientSocket { stream, num_busy, end: None, write_stall: None }
    }

    /// Ready when hyper may know that input ended.
    fn poll_end(&mut self, task: &mut Context<'_>) -> Poll<Result<()>> {
        let end = self.end.get_or_insert_with(|| EndOfInput { grace: Box::pin(sleep(EOF_GRACE)), first_write: None });
        if self.num_busy.load(Ordering::Relaxed) > 0 {
            ready!(end.grace.as_mut().poll(task));
        }
        Poll::Ready(Ok(()))
    }

    /// Judges the outcome of a write: stalls become errors, and a write long after the end of input is a sign of life.
    fn judge_write(&mut self, task: &mut Context<'_>, outcome: Poll<Result<usize>>) -> Poll<Result<usize>> {
        if outcome.is_pending() {
            let stall = self.write_stall.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
            ready!(stall.as_mut().poll(task));
            return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "client does not read")));
        }
        self.write_stall = None;
        if let (Some(end), Poll::Ready(Ok(_))) = (&mut self.end, &outcome) {
            let now = Instant::now();
            let first = *end.first_write.get_or_insert(now);
            if now.duration_since(first) > RESET_TIME {
                end.grace.as_mut().reset(now + EOF_GRACE);
            }
        }
        outcome
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        if self.end.is_none() {
            let len_before = buf.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(task, buf))?;
            if buf.filled().len() > len_before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_end(task)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(task, buf);
        self.judge_write(task, outcome)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, task: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(task, bufs);
        self.judge_write(task, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}
