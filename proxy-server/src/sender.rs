//! The task that empties one queue (semantics.md §4.5): waits without waking up, merges what waits,
//! sends it, does what the answer demands.
//!
//! Invariants: a wdiff is dropped only after the archive said that it has it or will never need it;
//! a graceful stop lets a transfer end, a forced one breaks it off; one transfer per queue.
use crate::env::Env;
use crate::merge::{self, Input};
use crate::queue::{Batch, Mark, Next, Queue};
use crate::reaction::{Answer, Reaction, react};
use crate::volume::Volume;
use futures::FutureExt;
use proto::convert::uuid_bytes;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::host_client::HostClient;
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{
    Empty, WdiffResult, WdiffSender, WdiffStart, WdiffTransferReply, WdiffTransferRequest,
};
use server_kit::blocking;
use server_kit::chunks::IN_FLIGHT;
use server_kit::error::{Reason, RoleError};
use server_kit::net::Endpoint;
use server_kit::state_machine::StopFlag;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// The sender of one queue.
pub(crate) struct Sender {
    env: Arc<Env>,
    volume: Arc<Volume>,
    queue: Arc<Queue>,
    channel: Option<(Endpoint, Channel)>,
    /// The last attempt found nobody: ask whether somebody is there before taking a slot.
    unreachable: bool,
}

impl Sender {
    /// Starts the task; it ends with the queue or with the process.
    pub(crate) fn spawn(env: &Arc<Env>, volume: &Arc<Volume>, queue: &Arc<Queue>) {
        let sender = Self {
            env: Arc::clone(env),
            volume: Arc::clone(volume),
            queue: Arc::clone(queue),
            channel: None,
            unreachable: false,
        };
        env.senders.spawn(sender.run());
    }

    async fn run(mut self) {
        let (end, requested) = (self.queue.end.clone(), self.env.shutdown.requested());
        loop {
            let batch = tokio::select! {
                biased;
                () = end.cancelled() => return,
                () = requested.cancelled() => return,
                batch = self.next_batch() => batch,
            };
            let Some(delay) = self.send(batch).await else { continue };
            self.queue.set_retry_at(Some(Instant::now() + delay));
            tokio::select! {
                biased;
                () = end.cancelled() => return,
                () = requested.cancelled() => return,
                () = self.queue.kick.notified() => {}
                () = tokio::time::sleep(delay) => {}
            }
            self.queue.set_retry_at(None);
        }
    }

    async fn next_batch(&self) -> Batch {
        loop {
            self.volume.cell.wait_until(Volume::may_send).await;
            match self.queue.next(&self.env.limits) {
                Next::Idle => self.queue.wake.notified().await,
                Next::NotBefore(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.queue.wake.notified() => {}
                },
                Next::Send(batch) => {
                    // A kick of the time before: it has what it wanted.
                    let _ = self.queue.kick.notified().now_or_never();
                    return batch;
                }
            }
        }
    }

    /// One attempt with all its consequences; how long to wait before the next.
    async fn send(&mut self, batch: Batch) -> Option<Duration> {
        let queue = Arc::clone(&self.queue);
        let sending = queue.begin_sending();
        if !Volume::may_send(&self.volume.cell.view()) {
            // Stopped in between: whoever stops looks at `sending` after raising the flag.
            return None;
        }
        let volume = Arc::clone(&self.volume);
        let (forced, end) = (self.env.shutdown.forced(), queue.end.clone());
        let answer = tokio::select! {
            biased;
            () = volume.cell.wait_until(|v| v.stop == StopFlag::ForceStopping) => Answer::Aborted,
            () = forced.cancelled() => Answer::Aborted,
            () = end.cancelled() => Answer::Aborted,
            answer = self.attempt(&batch) => answer,
        };
        self.unreachable = matches!(answer, Answer::Broken(_));
        let delay = self.follow(batch, &answer).await;
        drop(sending);
        delay
    }

    async fn attempt(&mut self, batch: &Batch) -> Answer {
        let archive = self.queue.archive();
        let channel = match &self.channel {
            Some((address, channel)) if *address == archive.address => channel.clone(),
            _ => self.env.connector.channel(&archive.address),
        };
        self.channel = Some((archive.address.clone(), channel.clone()));
        let peer = format!("{} at {}", archive.name, archive.address);
        if self.unreachable {
            let found = HostClient::new(channel.clone()).info(Empty {}).await;
            if let Err(status) = found {
                return Answer::from_error(RoleError::from_status(&peer, &status));
            }
        }
        // Closed never; an error would mean that nobody may send any more.
        let Ok(_slot) = self.env.send_slots.acquire().await else { return Answer::Aborted };
        let names = match Queue::names(batch) {
            Ok(names) => names,
            Err(error) => return Answer::Damaged(error),
        };
        let input = Input {
            dir: self.queue.dir(),
            names,
            uuid: batch.uuid,
            compression: archive.compression,
            threads: self.env.limits.threads,
        };
        let mut client = ArchiveClient::new(channel);
        transfer(&mut client, self.start(batch), input, &peer).await
    }

    fn start(&self, batch: &Batch) -> WdiffTransferRequest {
        let start = WdiffStart {
            volume: self.volume.name.to_string(),
            sender_id: self.env.id.to_string(),
            sender: WdiffSender::Proxy.into(),
            log_uuid: uuid_bytes(batch.uuid),
            size_lb: self.volume.size_lb(),
            diff: Some(batch.merged.into()),
        };
        WdiffTransferRequest { step: Some(Step::Start(start)) }
    }

    async fn follow(&self, batch: Batch, answer: &Answer) -> Option<Duration> {
        let diff = batch.merged;
        match react(answer) {
            reaction @ (Reaction::Sent | Reaction::Obsolete) => {
                self.dropped(batch, reaction == Reaction::Sent, answer).await
            }
            Reaction::GiveUp => self.give_up(answer, Mark::GivenUp, diff),
            Reaction::Damaged => self.give_up(answer, Mark::Damaged, diff),
            Reaction::RetryUnlessQuiet if self.volume.is_quiet() => {
                self.give_up(answer, Mark::GivenUp, diff)
            }
            Reaction::Retry | Reaction::RetryUnlessQuiet => {
                self.note(answer, Mark::None);
                Some(self.queue.next_delay())
            }
            Reaction::RetrySoon => {
                self.note(answer, Mark::None);
                Some(self.env.limits.retry_min)
            }
            Reaction::End => None,
        }
    }

    async fn dropped(&self, batch: Batch, sent: bool, answer: &Answer) -> Option<Duration> {
        let diff = batch.merged;
        let (volume, archive) = (&self.volume.name, &self.queue.name);
        if sent {
            tracing::debug!(%volume, %archive, %diff, files = batch.diffs.len(), "sent");
        } else {
            let answer = answer.text(archive.as_str());
            tracing::warn!(%volume, %archive, %diff, answer, "not needed there, dropped");
        }
        let queue = Arc::clone(&self.queue);
        match blocking::run(move || queue.drop_batch(&batch, sent)).await {
            Ok(()) => None,
            Err(error) => {
                self.note(&Answer::Broken(error), Mark::None);
                Some(self.env.limits.retry_min)
            }
        }
    }

    fn give_up(
        &self,
        answer: &Answer,
        mark: Mark,
        diff: wdiff_format::gid::Diff,
    ) -> Option<Duration> {
        let (volume, archive) = (&self.volume.name, &self.queue.name);
        tracing::error!(%volume, %archive, %diff, "sending is given up until a kick");
        self.note(answer, mark);
        None
    }

    /// Shows the failure in the status, and in the log when it is another one than before.
    fn note(&self, answer: &Answer, mark: Mark) {
        let (volume, archive) = (&self.volume.name, &self.queue.name);
        let text = answer.text(archive.as_str());
        if self.queue.note_failure(text.clone(), answer.kind(), mark) {
            if matches!(answer, Answer::Result(WdiffResult::Syncing, _)) {
                // As it should be during a full or hash backup.
                tracing::info!(%volume, %archive, "{text}: waiting for that to end");
            } else {
                tracing::warn!(%volume, %archive, "cannot send: {text}");
            }
        }
    }
}

/// Sends one merged wdiff. The archive may answer at any time; then merging is broken off.
async fn transfer(
    client: &mut ArchiveClient<Channel>,
    start: WdiffTransferRequest,
    input: Input,
    peer: &str,
) -> Answer {
    let (messages, mut merged) = mpsc::channel(IN_FLIGHT);
    let (body, outgoing) = mpsc::channel(1);
    let merging = blocking::spawn(move || merge::send(&input, messages));
    // Owns both ends: when it ends the archive sees the end, when it is dropped merging does.
    let pump = async move {
        if body.send(start).await.is_err() {
            return;
        }
        while let Some(message) = merged.recv().await {
            if body.send(message).await.is_err() {
                return;
            }
        }
    };
    let reply = {
        let call = client.wdiff_transfer(ReceiverStream::new(outgoing));
        tokio::pin!(call);
        tokio::select! {
            reply = &mut call => reply,
            () = pump => call.await,
        }
    };
    let local = merging.await.map_err(RoleError::from).and_then(|merged| merged);
    match (local, reply) {
        (Err(e), _) if e.reason() == Reason::Damaged => Answer::Damaged(e),
        (Err(e), _) if e.reason() != Reason::Cancelled => Answer::Broken(e),
        (_, Err(status)) => Answer::from_error(RoleError::from_status(peer, &status)),
        (local, Ok(reply)) => answered(reply.into_inner(), local.is_ok()),
    }
}

/// An archive that stored what it did not get whole cannot be believed.
fn answered(reply: WdiffTransferReply, whole: bool) -> Answer {
    match reply.result() {
        proto::v1::WdiffResult::Stored if !whole => {
            Answer::Refused(RoleError::wrong_peer("it acknowledged half a transfer"))
        }
        result => Answer::Result(result, reply.message),
    }
}
