//! The format of the state file: a header, then batches that are appended as sockets change, the first of them whole.
//! Pure: bytes in, bytes out.
//!
//! ```text
//! header  "tcpclose"  format u16  needs u16  length u16  boot id (36 bytes) …            checksum u32
//! frame   length u32  checksum u32 of the payload  check u32 of these eight bytes         payload
//! payload kind u8 (1: a batch)  length u8  until_ns u64 …                                 records
//! record  length u16  kind u8 (1: a socket, 2: gone)  slot u32  fields …
//! ```
//!
//! Everything is little-endian, and everything that can grow says its length: a reader takes the fields that it knows
//! and skips the rest, and kinds that it does not know. So a version can add fields and kinds, and the one before it
//! reads its files: [`FORMAT`] counts such steps, and a file `needs` the first version that understands it right.
//!
//! The last frame may be torn: its writer was killed. The frames before it are valid. Any other mismatch is corruption,
//! and then nothing is valid.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv6Addr;

use tcpclose_common::state::TcpState;

use crate::names::{Flow, Phase, Role, Side};
use crate::tracker::changes::BitSet;
use crate::tracker::dump::MARGIN_NS;
use crate::tracker::saved::{SavedSocket, SavedState};
use crate::tracker::socket::{EnteredAt, SocketKind};
use crate::tracker::table::Tracker;

/// The version that this program writes.
pub const FORMAT: u16 = 1;

/// The oldest reader that understands what this program writes.
const NEEDS: u16 = 1;

const MAGIC: &[u8; 8] = b"tcpclose";
/// A boot id is a UUID in letters.
const BOOT_ID: usize = 36;
/// Of a frame, before its payload.
const FRAME_HEAD: usize = 12;
const BATCH: u8 = 1;
const SOCKET: u8 = 1;
const GONE: u8 = 2;
const COUNTED: u8 = 1;

/// The file is written anew once the appended batches take more bytes than the first batch and this together.
const SLACK: usize = 1 << 20;

/// Why a file is of no use to this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnusableState {
    OtherBoot,
    /// Its format, which this version cannot read.
    TooNew(u16),
    /// What is wrong with it.
    Corrupt(&'static str),
}

impl fmt::Display for UnusableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherBoot => write!(f, "it is from another boot of this host"),
            Self::TooNew(format) => {
                write!(f, "its format, {format}, is of a later version than this, which reads {FORMAT}")
            }
            Self::Corrupt(why) => write!(f, "it is corrupt ({why})"),
        }
    }
}

/// Decides what is written to the state file.
#[derive(Debug, Default)]
pub struct StateLog {
    boot_id: String,
    /// Slots of the sockets in the file.
    on_file: BitSet,
    /// Bytes of the file's first batch, and of those after it.
    whole: usize,
    appended: usize,
    /// The file is to be written anew.
    anew: bool,
}

/// The next write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    Nothing,
    /// To be put at the file's end.
    Append(Vec<u8>),
    /// A file of its own, to take the place of the old one.
    Whole(Vec<u8>),
}

impl StateLog {
    pub fn new(boot_id: &str) -> Self {
        Self { boot_id: boot_id.to_owned(), anew: true, ..Self::default() }
    }

    /// The last batch is not, or not all, in the file.
    pub fn not_written(&mut self) {
        self.anew = true;
    }

    /// The changes of `tracker`'s sockets. Every step until `until_ns`, less a margin for probes that are still at their
    /// record, is in it; 0 when records were lost.
    pub fn batch(&mut self, tracker: &mut Tracker, until_ns: u64) -> Batch {
        let until_ns = if tracker.loss.is_some() { 0 } else { until_ns.saturating_sub(MARGIN_NS) };
        let Some(changes) = &mut tracker.changes else { return Batch::Nothing };
        if self.anew || changes.all || self.appended > self.whole + SLACK {
            changes.forget();
            return Batch::Whole(self.all_of(tracker, until_ns));
        }
        let mut frame = PendingBatch::new(Vec::new(), until_ns);
        for slot in changes.take() {
            let at = slot as usize;
            match tracker.sockets.get(at).and_then(SavedSocket::of) {
                Some(saved) => {
                    self.on_file.set(at);
                    frame.socket(slot, &saved);
                }
                None if self.on_file.clear(at) => frame.gone(slot),
                None => {}
            }
        }
        // An empty file needs no new instant.
        if self.on_file.is_empty() && frame.is_empty() {
            return Batch::Nothing;
        }
        let bytes = frame.done();
        self.appended += bytes.len();
        Batch::Append(bytes)
    }

    fn all_of(&mut self, tracker: &Tracker, until_ns: u64) -> Vec<u8> {
        self.on_file.forget();
        let mut frame = PendingBatch::new(header(&self.boot_id), until_ns);
        for (at, socket) in &tracker.sockets {
            if let (Some(saved), Ok(slot)) = (SavedSocket::of(socket), u32::try_from(at)) {
                self.on_file.set(at);
                frame.socket(slot, &saved);
            }
        }
        let bytes = frame.done();
        (self.whole, self.appended, self.anew) = (bytes.len(), 0, false);
        bytes
    }
}

/// The file that an agent with these `sockets` would write at `until_ns`.
pub fn write(boot_id: &str, sockets: &[SavedSocket], until_ns: u64) -> Vec<u8> {
    let mut frame = PendingBatch::new(header(boot_id), until_ns);
    for (slot, saved) in (0..).zip(sockets) {
        frame.socket(slot, saved);
    }
    frame.done()
}

fn header(boot_id: &str) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(NEEDS.to_le_bytes());
    bytes.extend((BOOT_ID as u16).to_le_bytes());
    let mut id = [b' '; BOOT_ID];
    for (to, from) in id.iter_mut().zip(boot_id.bytes()) {
        *to = from;
    }
    bytes.extend(id);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// A batch that is being written.
struct PendingBatch {
    bytes: Vec<u8>,
    /// Where it begins, and where its records do.
    start: usize,
    records: usize,
}

impl PendingBatch {
    /// A frame after `bytes`.
    fn new(mut bytes: Vec<u8>, until_ns: u64) -> Self {
        let start = bytes.len();
        bytes.extend([0; FRAME_HEAD]);
        bytes.extend([BATCH, 8]);
        bytes.extend(until_ns.to_le_bytes());
        Self { start, records: bytes.len(), bytes }
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == self.records
    }

    fn socket(&mut self, slot: u32, saved: &SavedSocket) {
        let SavedSocket { cookie, flow, netns, port, side, role, phase, kind, counted, since } = *saved;
        let Flow { local, remote, local_port, remote_port } = flow;
        let start = self.bytes.len();
        let bytes = &mut self.bytes;
        bytes.extend([0, 0, SOCKET]);
        bytes.extend(slot.to_le_bytes());
        bytes.extend([phase.state().raw(), u8::from(kind == SocketKind::Minisocket)]);
        bytes.extend([side_code(side), role_code(role), if counted { COUNTED } else { 0 }]);
        bytes.extend(cookie.to_le_bytes());
        bytes.extend(since.earliest_ns.to_le_bytes());
        bytes.extend(since.latest_ns.to_le_bytes());
        bytes.extend(netns.to_le_bytes());
        for port in [port, local_port, remote_port] {
            bytes.extend(port.to_le_bytes());
        }
        bytes.extend(local.octets());
        bytes.extend(remote.octets());
        self.close_record(start);
    }

    fn gone(&mut self, slot: u32) {
        let start = self.bytes.len();
        self.bytes.extend([0, 0, GONE]);
        self.bytes.extend(slot.to_le_bytes());
        self.close_record(start);
    }

    /// Writes the length of the record that began at `start` before it.
    fn close_record(&mut self, start: usize) {
        // A record has less than 100 bytes.
        let length = (self.bytes.len() - start - 2) as u16;
        if let Some(head) = self.bytes.get_mut(start..start + 2) {
            head.copy_from_slice(&length.to_le_bytes());
        }
    }

    fn done(mut self) -> Vec<u8> {
        let (_, frame) = self.bytes.split_at_mut(self.start);
        if let Some((head, payload)) = frame.split_at_mut_checked(FRAME_HEAD) {
            let (sums, check) = head.split_at_mut(8);
            // 2³² bytes are 50 million sockets, which no host has.
            sums[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
            sums[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
            check.copy_from_slice(&crc32fast::hash(sums).to_le_bytes());
        }
        self.bytes
    }
}

/// Reads a file that was written in the boot `boot_id`, at `now_ns` or before.
///
/// # Errors
/// When it is of no use: of another boot, too new, or corrupt.
pub fn read(bytes: &[u8], boot_id: &str, now_ns: u64) -> Result<SavedState, UnusableState> {
    let mut rest = Reader(bytes);
    read_header(bytes, &mut rest, boot_id)?;
    let mut sockets: HashMap<u32, SavedSocket> = HashMap::new();
    let mut until_ns = 0;
    while let Some(payload) = next_frame(&mut rest)? {
        let mut payload = Reader(payload);
        let (kind, head) = (payload.u8()?, payload.u8()?);
        if kind != BATCH {
            continue;
        }
        until_ns = Reader(payload.take(head.into())?).u64()?;
        while !payload.0.is_empty() {
            let length = payload.u16()?;
            read_record(Reader(payload.take(length.into())?), &mut sockets)?;
        }
    }
    let latest = sockets.values().map(|saved| saved.since.latest_ns.max(saved.since.earliest_ns)).max();
    if until_ns.max(latest.unwrap_or(0)) > now_ns {
        return Err(UnusableState::Corrupt("its times lie in the future"));
    }
    Ok(SavedState::new(sockets.into_values(), until_ns))
}

fn read_header(bytes: &[u8], rest: &mut Reader<'_>, boot_id: &str) -> Result<(), UnusableState> {
    if rest.take(MAGIC.len())? != MAGIC {
        return Err(UnusableState::Corrupt("it does not begin as a state file does"));
    }
    let (format, needs, length) = (rest.u16()?, rest.u16()?, rest.u16()?);
    let fields = rest.take(length.into())?;
    let summed = bytes.len() - rest.0.len();
    let sum = rest.u32()?;
    if bytes.get(..summed).is_none_or(|head| crc32fast::hash(head) != sum) {
        return Err(UnusableState::Corrupt("the checksum of its header differs"));
    }
    if needs > FORMAT {
        return Err(UnusableState::TooNew(format));
    }
    if Reader(fields).take(BOOT_ID)? != boot_id.as_bytes() {
        return Err(UnusableState::OtherBoot);
    }
    Ok(())
}

/// The payload of the next frame; `None` at the end, or where the last frame is torn.
fn next_frame<'a>(rest: &mut Reader<'a>) -> Result<Option<&'a [u8]>, UnusableState> {
    let Ok(head) = rest.take(FRAME_HEAD) else { return Ok(None) };
    let mut fields = Reader(head);
    let (length, sum, check) = (fields.u32()?, fields.u32()?, fields.u32()?);
    if crc32fast::hash(&head[..8]) != check {
        return Err(UnusableState::Corrupt("the checksum of a length differs"));
    }
    let Ok(payload) = rest.take(length as usize) else { return Ok(None) };
    if crc32fast::hash(payload) != sum {
        return Err(UnusableState::Corrupt("the checksum of a batch differs"));
    }
    Ok(Some(payload))
}

fn read_record(mut record: Reader<'_>, sockets: &mut HashMap<u32, SavedSocket>) -> Result<(), UnusableState> {
    match record.u8()? {
        GONE => {
            sockets.remove(&record.u32()?);
        }
        SOCKET => {
            let slot = record.u32()?;
            let saved = read_socket(&mut record)?;
            // A socket of a kind that only a later version knows replaces the one before it, too.
            match saved {
                Some(saved) => sockets.insert(slot, saved),
                None => sockets.remove(&slot),
            };
        }
        _ => {}
    }
    Ok(())
}

fn read_socket(record: &mut Reader<'_>) -> Result<Option<SavedSocket>, UnusableState> {
    let (state, kind, side, role, more) =
        (record.u8()?, record.u8()?, record.u8()?, record.u8()?, record.u8()?);
    let (cookie, earliest_ns, latest_ns, netns) =
        (record.u64()?, record.u64()?, record.u64()?, record.u32()?);
    let (port, local_port, remote_port) = (record.u16()?, record.u16()?, record.u16()?);
    let flow = Flow { local: record.address()?, remote: record.address()?, local_port, remote_port };
    if earliest_ns > latest_ns {
        return Err(UnusableState::Corrupt("an interval ends before it begins"));
    }
    let phase = TcpState::from_raw(state).and_then(Phase::of);
    let kind = match kind {
        0 => Some(SocketKind::Socket),
        1 => Some(SocketKind::Minisocket),
        _ => None,
    };
    let (Some(phase), Some(kind)) = (phase, kind) else { return Ok(None) };
    Ok(Some(SavedSocket {
        cookie,
        flow,
        netns,
        port,
        side: Side::ALL.into_iter().find(|known| side_code(*known) == side).unwrap_or(Side::Unknown),
        role: Role::ALL.into_iter().find(|known| role_code(*known) == role).unwrap_or(Role::Unknown),
        phase,
        kind,
        counted: more & COUNTED != 0,
        since: EnteredAt { earliest_ns, latest_ns },
    }))
}

/// These codes never change.
const fn side_code(side: Side) -> u8 {
    match side {
        Side::Unknown => 0,
        Side::Server => 1,
        Side::Client => 2,
    }
}

/// These never change either.
const fn role_code(role: Role) -> u8 {
    match role {
        Role::Unknown => 0,
        Role::Active => 1,
        Role::Passive => 2,
        Role::Simultaneous => 3,
        Role::None => 4,
    }
}

/// The bytes left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], UnusableState> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(UnusableState::Corrupt("something in it is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], UnusableState> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, UnusableState> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, UnusableState> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, UnusableState> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, UnusableState> {
        self.array().map(u64::from_le_bytes)
    }

    fn address(&mut self) -> Result<Ipv6Addr, UnusableState> {
        self.array::<16>().map(Ipv6Addr::from)
    }
}
