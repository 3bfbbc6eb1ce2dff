//! Which of a document's stacks are those of a socket.

use serde::{Deserialize, Serialize};
use tcpclose_common::stack::Moment;

/// The stacks of a socket: indices into the document's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackIndices {
    /// Who opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<u32>,
    /// Who read the end of its stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_read: Option<u32>,
    /// Who wrote last after the peer's FIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<u32>,
    /// Who accepted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u32>,
}

impl StackIndices {
    pub const fn set(&mut self, moment: Moment, index: u32) {
        match moment {
            Moment::Opened => self.opened = Some(index),
            Moment::EndRead => self.end_read = Some(index),
            Moment::Written => self.written = Some(index),
            Moment::Accepted => self.accepted = Some(index),
        }
    }

    /// The same indices into a list that has `by` stacks more before these.
    pub fn shift(&mut self, by: u32) {
        for index in [&mut self.opened, &mut self.end_read, &mut self.written, &mut self.accepted] {
            *index = index.map(|index| index + by);
        }
    }

    pub const fn get(self, moment: Moment) -> Option<u32> {
        match moment {
            Moment::Opened => self.opened,
            Moment::EndRead => self.end_read,
            Moment::Written => self.written,
            Moment::Accepted => self.accepted,
        }
    }
}
