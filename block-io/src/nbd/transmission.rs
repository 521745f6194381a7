//! The transmission phase of one connection: requests in, operations on the export, replies out.
//!
//! Everything of a connection happens in one task. Requests that have arrived together are started
//! together; what has finished together is answered with one system call; a finished operation
//! costs one wake-up at most.
//!
//! Invariants:
//! - A write's payload is received into the buffer that the export gets.
//! - Memory is charged before it is allocated, and no more requests are taken than [`Limits`] say.
//! - Every operation that was started is polled to its end, even if the client has gone (only a
//!   shutdown that takes too long drops it).
//! - A peer that holds memory that others wait for, and does not move, is disconnected.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream};

use super::budget::{Charge, Ledger};
use super::export::{Chunk, Export, ExportError, Extent};
use super::failures::Failures;
use super::handshake::{Negotiated, served_bytes};
use super::input::{Due, Input, Payload};
use super::protocol::Errno;
use super::reply::Replies;
use super::request::{Kind, MAX_STATUS_BYTES, Request, Rules, Verdict, judge};
use super::server::Limits;
use super::socket::Socket;
use crate::buffer::AlignedBuf;

/// Why transmission ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransmissionError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("client broke the protocol: no request where one must begin")]
    Garbage,
    #[error("client went away inside a request")]
    Truncated,
    #[error("client did not move for {0:?} while others waited for the memory that it held")]
    InTheWay(Duration),
}

/// Requests that are taken in before replies get their turn.
const BATCH: usize = 64;

/// What is being received.
enum Receiving {
    Header,
    /// Judged, waits for memory.
    Admission(Request),
    Payload {
        request: Request,
        charge: Charge,
        payload: Payload,
    },
    /// The payload of a refused write goes by.
    Skip {
        left: u64,
        cookie: u64,
        errno: Errno,
        why: &'static str,
    },
    /// Nothing more is read.
    Ended,
}

/// One connection in its transmission phase.
pub(super) struct Transmission<'a> {
    socket: &'a Socket,
    export: &'a dyn Export,
    structured: bool,
    allocation: bool,
    limits: Limits,
    ledger: Ledger,
    input: Input,
    receiving: Receiving,
    running: FuturesUnordered<Running<'a>>,
    replies: Replies,
    failures: Failures,
    /// Why the client cannot be reached any more; what runs is only waited for.
    lost: Option<TransmissionError>,
    watch: Watch,
}

impl<'a> Transmission<'a> {
    pub(super) fn new(
        socket: &'a Socket,
        negotiated: &'a Negotiated,
        limits: Limits,
        ledger: Ledger,
    ) -> Self {
        Self {
            socket,
            export: &*negotiated.export,
            structured: negotiated.structured,
            allocation: negotiated.allocation,
            limits,
            ledger,
            input: Input::new(),
            receiving: Receiving::Header,
            running: FuturesUnordered::new(),
            replies: Replies::new(negotiated.structured),
            failures: Failures::new(&negotiated.name),
            lost: None,
            watch: Watch::new(limits.stall),
        }
    }

    /// Takes no more requests; [`poll`](Self::poll) finishes what has begun.
    pub(super) fn stop_receiving(&mut self) {
        self.receiving = Receiving::Ended;
        self.ledger.stop_waiting();
    }

    /// Drives the connection; ready when it is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransmissionError>> {
        loop {
            let moved = self.receive(cx);
            let finished = self.collect(cx);
            let sent = self.send(cx);
            if matches!(self.receiving, Receiving::Ended)
                && self.running.is_empty()
                && self.replies.count() == 0
            {
                return Poll::Ready(self.lost.take().map_or(Ok(()), Err));
            }
            if moved || sent {
                self.watch.moved = true;
            } else if !finished {
                break;
            }
        }
        if self.ledger.holds_shared() && self.lost.is_none() {
            let in_the_way = self.ledger.is_in_the_way() && self.running.is_empty();
            if self.watch.poll_stalled(cx, in_the_way).is_ready() {
                self.lose(TransmissionError::InTheWay(self.limits.stall));
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// The client cannot be reached any more.
    fn lose(&mut self, why: TransmissionError) {
        self.stop_receiving();
        self.replies.discard(&mut self.ledger);
        self.lost.get_or_insert(why);
    }

    /// Takes in requests; true if anything happened.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        for round in 0..BATCH {
            match self.poll_receive(cx) {
                Poll::Pending => return round > 0,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.lose(error);
                    return true;
                }
            }
        }
        true
    }

    /// One step of receiving.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransmissionError>> {
        match std::mem::replace(&mut self.receiving, Receiving::Header) {
            Receiving::Header => self.poll_header(cx),
            Receiving::Admission(request) => {
                match self.ledger.poll_charge(cx, request.memory_bytes()) {
                    Poll::Ready(charge) => {
                        self.admit(request, charge);
                        Poll::Ready(Ok(()))
                    }
                    Poll::Pending => {
                        self.receiving = Receiving::Admission(request);
                        Poll::Pending
                    }
                }
            }
            Receiving::Payload { request, charge, payload } => {
                self.poll_payload(cx, request, charge, payload)
            }
            Receiving::Skip { left: 0, cookie, errno, why } => {
                self.replies.failure(cookie, errno, why);
                Poll::Ready(Ok(()))
            }
            Receiving::Skip { left, cookie, errno, why } => {
                let left = self.input.skip(left);
                self.receiving = Receiving::Skip { left, cookie, errno, why };
                if left > 0 { self.poll_fill(cx, Due::Waste) } else { Poll::Ready(Ok(())) }
            }
            Receiving::Ended => {
                self.receiving = Receiving::Ended;
                Poll::Pending
            }
        }
    }

    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransmissionError>> {
        if self.running.len() + self.replies.count() >= self.limits.connection_requests {
            return Poll::Pending;
        }
        let Some(header) = self.input.header() else {
            return self.poll_fill(cx, Due::Head);
        };
        self.receiving = match judge(&header, &self.rules()) {
            Verdict::Garbage => return Poll::Ready(Err(TransmissionError::Garbage)),
            Verdict::Disconnect => Receiving::Ended,
            Verdict::Refuse { cookie, errno, why, skip_bytes } => {
                tracing::debug!(export = self.failures.export(), ?header, why, "request refused");
                Receiving::Skip { left: u64::from(skip_bytes), cookie, errno, why }
            }
            Verdict::Do(request) if request.memory_bytes() == 0 => {
                self.start(request, None, None);
                Receiving::Header
            }
            Verdict::Do(request) => Receiving::Admission(request),
        };
        Poll::Ready(Ok(()))
    }

    fn rules(&self) -> Rules {
        Rules {
            size_bytes: served_bytes(self.export),
            block_bytes: self.export.block_bytes(),
            read_only: self.export.read_only(),
            zeroes_are_fast: self.export.zeroes_are_fast(),
            structured: self.structured,
            allocation: self.allocation,
        }
    }

    /// Memory is there: a write gets its payload, everything else starts.
    fn admit(&mut self, request: Request, charge: Charge) {
        if matches!(request.kind, Kind::Write { .. }) {
            let payload = self.input.payload(request.len);
            self.receiving = Receiving::Payload { request, charge, payload };
        } else {
            self.start(request, Some(charge), None);
        }
    }

    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        request: Request,
        charge: Charge,
        mut payload: Payload,
    ) -> Poll<Result<(), TransmissionError>> {
        let mut result = Poll::Ready(Ok(()));
        if !payload.is_complete() {
            result = self.poll_fill(cx, Due::Payload(&mut payload));
        }
        if payload.is_complete() {
            self.start(request, Some(charge), Some(payload.into_buf()));
        } else {
            self.receiving = Receiving::Payload { request, charge, payload };
        }
        result
    }

    /// Reads what has come; the client may go only between two requests.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        due: Due<'_>,
    ) -> Poll<Result<(), TransmissionError>> {
        let between = matches!(due, Due::Head) && self.input.is_empty();
        let more = ready!(self.input.poll_fill(cx, self.socket, due))?;
        if !more && !between {
            return Poll::Ready(Err(TransmissionError::Truncated));
        }
        if !more {
            self.receiving = Receiving::Ended;
        }
        Poll::Ready(Ok(()))
    }

    fn start(&mut self, request: Request, charge: Option<Charge>, payload: Option<AlignedBuf>) {
        let Request { offset, len, .. } = request;
        let operation = match request.kind {
            Kind::Read { .. } => Operation::Read(self.export.read(offset, len)),
            Kind::Write { fua } => {
                let data = payload.map(AlignedBuf::freeze).unwrap_or_default();
                Operation::Other(self.export.write(offset, data, fua))
            }
            Kind::Flush => Operation::Other(self.export.flush()),
            Kind::Trim { fua } => Operation::Other(self.export.trim(offset, len, fua)),
            Kind::WriteZeroes(how) => Operation::Other(self.export.write_zeroes(offset, len, how)),
            Kind::BlockStatus { .. } => {
                let len = len.min(MAX_STATUS_BYTES);
                Operation::Status(self.export.block_status(offset, len))
            }
        };
        self.running.push(Running { request, charge, operation });
    }

    /// Queues replies to what has finished; true if there was any.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(done)) = Pin::new(&mut self.running).poll_next(cx) {
            any = true;
            self.reply(done);
        }
        any
    }

    fn reply(&mut self, done: Done) {
        let Done { request, mut charge, outcome } = done;
        let cookie = request.cookie;
        let result = match (outcome, request.kind) {
            (Err(error), _) => Err(error),
            _ if self.lost.is_some() => Ok(()),
            (Ok(Output::Read(chunks)), Kind::Read { one_chunk }) => self
                .replies
                .data(&request, one_chunk, chunks, &mut charge)
                .map_err(|_| io::Error::other("read returned a wrong length").into()),
            (Ok(Output::Status(extents)), Kind::BlockStatus { one_extent }) => {
                self.replies.status(&request, one_extent, &extents);
                Ok(())
            }
            (Ok(_), _) => {
                self.replies.success(cookie);
                Ok(())
            }
        };
        charge.into_iter().for_each(|charge| self.ledger.release(charge));
        if let Err(error) = result {
            self.failures.log(&request, &error);
            if self.lost.is_none() {
                self.replies.failure(cookie, error.errno(), &error.to_string());
            }
        }
    }

    /// Sends what is ready to be sent; true if anything went out.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.replies.total_sent_bytes();
        match self.replies.poll_send(cx, self.socket, &mut self.ledger) {
            Poll::Ready(Err(error)) => {
                self.lose(error.into());
                true
            }
            _ => self.replies.total_sent_bytes() > before,
        }
    }
}

/// Looks at a client that holds memory from time to time.
struct Watch {
    interval: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// The client has moved since the last look.
    moved: bool,
}

impl Watch {
    fn new(interval: Duration) -> Self {
        Self { interval, timer: None, moved: false }
    }

    /// Ready when the client was in the way at a look, and had not moved since the one before.
    fn poll_stalled(&mut self, cx: &mut Context<'_>, in_the_way: bool) -> Poll<()> {
        loop {
            let interval = self.interval;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            if in_the_way && !std::mem::take(&mut self.moved) {
                return Poll::Ready(());
            }
        }
    }
}

/// An operation of the export.
enum Operation<'a> {
    Read(BoxFuture<'a, Result<Vec<Chunk>, ExportError>>),
    Status(BoxFuture<'a, Result<Vec<Extent>, ExportError>>),
    Other(BoxFuture<'a, Result<(), ExportError>>),
}

/// What an operation returns.
enum Output {
    Read(Vec<Chunk>),
    Status(Vec<Extent>),
    Other,
}

/// A request that was started.
struct Running<'a> {
    request: Request,
    charge: Option<Charge>,
    operation: Operation<'a>,
}

/// A request that has finished.
struct Done {
    request: Request,
    charge: Option<Charge>,
    outcome: Result<Output, ExportError>,
}

impl Future for Running<'_> {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let outcome = match &mut self.operation {
            Operation::Read(future) => ready!(future.as_mut().poll(cx)).map(Output::Read),
            Operation::Status(future) => ready!(future.as_mut().poll(cx)).map(Output::Status),
            Operation::Other(future) => ready!(future.as_mut().poll(cx)).map(|()| Output::Other),
        };
        Poll::Ready(Done { request: self.request, charge: self.charge.take(), outcome })
    }
}
