//! A state hook that reports nothing while dumps see sockets close: judged after each dump, logged once.

use crate::probe::StateHook;
use crate::tracker::silence::SilentHook;

#[derive(Clone, Copy, Debug, Default)]
pub struct SilenceWatch {
    /// The silence, as of the last dump.
    now: Option<SilentHook>,
    logged: bool,
}

impl SilenceWatch {
    pub fn is_silent(&self) -> bool {
        self.now.is_some()
    }

    /// Why counters and durations are incomplete at `now_ns`; `None` where the hook reports.
    pub fn why(&self, hook: StateHook, now_ns: u64) -> Option<String> {
        let SilentHook { since_ns, sockets } = self.now?;
        let seconds = now_ns.saturating_sub(since_ns) / 1_000_000_000;
        let hook = hook.name();
        Some(format!(
            "the state hook ({hook}) has reported nothing for {seconds} s, while dumps saw {sockets} sockets close"
        ))
    }

    /// Judges the hook after a dump whose chunks are all taken.
    pub fn judge(&mut self, silent: Option<SilentHook>, hook: StateHook) {
        let before = std::mem::replace(&mut self.now, silent);
        if before.is_some() && silent.is_none() {
            log::info!("the state hook is no longer considered silent");
        }
        if let Some(SilentHook { sockets, .. }) = silent
            && !std::mem::replace(&mut self.logged, true)
        {
            let other = match hook {
                StateHook::Btf => StateHook::Tracepoint,
                StateHook::Tracepoint => StateHook::Btf,
            };
            log::error!(
                "the state hook ({}) reports nothing: dumps saw {sockets} sockets close without a record (durations and closes \
                 are missing; try --state-hook {}, and report this with `uname -r`)",
                hook.name(),
                other.name()
            );
        }
    }
}
