//! A state hook that reports nothing while dumps see sockets close: judged after each dump, logged once.

use crate::agent::tracking::Tracking;
use crate::linux::host;
use crate::probe::StateHook;
use crate::tracker::silence::SilentHook;

#[derive(Clone, Copy, Debug, Default)]
pub struct SilenceWatch {
    /// The silence, as of the last dump.
    now: Option<SilentHook>,
    said: bool,
}

impl Tracking {
    /// Whether the state hook is known to report nothing.
    pub fn is_hook_silent(&self) -> bool {
        self.silence.now.is_some()
    }

    /// Why counters and durations are incomplete; `None` where the state hook reports.
    pub fn silence(&self) -> Option<String> {
        let SilentHook { since_ns, sockets } = self.silence.now?;
        let ago = host::monotonic_ns().saturating_sub(since_ns) / 1_000_000_000;
        Some(format!(
            "the state hook ({}) has reported nothing for {ago} s, in which {sockets} sockets closed by dumps",
            self.probe.hook.name()
        ))
    }

    /// Judges the hook after a dump whose chunks are all taken.
    pub fn judge_hook(&mut self) {
        let silent = self.tracker.silent_hook();
        // Losses that are not noticed yet explain it as well.
        if silent.is_some() && self.has_unnoticed_losses() {
            return;
        }
        let before = std::mem::replace(&mut self.silence.now, silent);
        if before.is_some() && self.silence.now.is_none() {
            log::warn!("the state hook reports closes again");
        }
        if let Some(SilentHook { sockets, .. }) = self.silence.now
            && !std::mem::replace(&mut self.silence.said, true)
        {
            let other = match self.probe.hook {
                StateHook::Btf => "tracepoint",
                StateHook::Tracepoint => "btf",
            };
            log::error!(
                "the state hook ({}) reports nothing: {sockets} sockets closed by dumps, and no record told of any (durations \
                 and closes are missing; try --state-hook {other}, and report this with `uname -r`)",
                self.probe.hook.name()
            );
        }
    }
}
