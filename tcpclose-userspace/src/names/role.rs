//! The sender of the first FIN.

use crate::names::phase::Phase;

word! {
    /// Who sent the first FIN.
    #[derive(Default)]
    pub enum Role {
        /// This side did.
        Active = "active",
        /// The peer did.
        Passive = "passive",
        /// Both did, before either FIN arrived.
        Simultaneous = "simultaneous",
        /// Nobody, before the end.
        None = "none",
        /// The first FIN came before the agent, and the state does not prove its sender.
        #[default]
        Unknown = "unknown",
    }
}

impl Role {
    /// The role that the phase alone proves.
    pub const fn proven_by(phase: Phase) -> Self {
        match phase {
            Phase::FinWait1 | Phase::FinWait2 => Self::Active,
            Phase::CloseWait | Phase::LastAck => Self::Passive,
            Phase::Closing => Self::Simultaneous,
            // By way of FIN-WAIT-2 or of CLOSING.
            Phase::TimeWait => Self::Unknown,
        }
    }
}
