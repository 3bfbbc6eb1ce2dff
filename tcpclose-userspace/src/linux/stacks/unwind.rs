//! The frames of a stack, by what the kernel found and by the files' own tables.
//!
//! The kernel follows frame pointers. libc's wrappers of system calls keep none, so that their caller is missing and the
//! caller's caller comes next; many programs keep none at all. The words above the stack pointer and `.eh_frame` show the
//! callers of the first functions; as soon as one is among the frames that the kernel found, the rest are those.

use gimli::{CfaRule, Register, RegisterRule, UnwindContext, UnwindSection};

use crate::linux::stacks::frames::{Cut, RawStack};
use crate::linux::stacks::module::Tables;

/// What unwinding asks of the process's files.
pub trait Code {
    /// Whether `address` is in executable memory.
    fn is_code(&self, address: u64) -> bool;

    /// The tables of the file at `address`, and that address as they count it.
    fn tables(&self, address: u64) -> Option<(&Tables, u64)>;
}

/// The most frames of a stack.
const MOST: usize = tcpclose_common::stack::FRAMES;

/// The numbers that the tables give to registers, and which of them holds the return address of a function that saves none.
struct Architecture {
    sp: Register,
    fp: Register,
    return_address: Register,
}

const X86_64: Architecture = Architecture { sp: Register(7), fp: Register(6), return_address: Register(16) };
const AARCH64: Architecture =
    Architecture { sp: Register(31), fp: Register(29), return_address: Register(30) };
const THIS: Architecture = if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 };

/// The addresses of a stack's frames, the innermost first, and why outer ones are missing. Addresses but the first are return
/// addresses.
pub fn frames(stack: &RawStack, code: &impl Code) -> (Vec<u64>, Option<Cut>) {
    if stack.ip == 0 || !code.is_code(stack.ip) {
        return (Vec::new(), Some(Cut::NoUserStack));
    }
    // The kernel takes any number for an address.
    let found: Vec<u64> = stack.found.iter().copied().skip(1).take_while(|&at| code.is_code(at)).collect();
    let mut frames = vec![stack.ip];
    let mut at =
        Position { ip: stack.ip, sp: stack.sp, fp: Some(stack.fp), lr: Some(stack.lr), is_call: false };
    let mut context = UnwindContext::new();
    while frames.len() < MOST {
        let next = match at.caller(stack, code, &mut context) {
            CallSite::Known(next) if code.is_code(next.ip) => next,
            CallSite::None | CallSite::Known(Position { ip: 0, .. }) => return (frames, None),
            CallSite::Known(_) | CallSite::Unknown => break,
        };
        if let Some(known) = found.iter().position(|&address| address == next.ip) {
            frames.extend_from_slice(&found[known..]);
            return cut(frames, stack);
        }
        frames.push(next.ip);
        at = next;
    }
    if frames.len() == 1 {
        // A function of assembly without tables: its caller's address is on top of the stack.
        let top = if stack.lr != 0 { Some(stack.lr) } else { stack.words.first().copied() };
        frames.extend(top.filter(|&top| code.is_code(top) && found.first() != Some(&top)));
    }
    let is_deep = frames.len() > 2;
    frames.extend(found.iter().filter(|at| !frames.contains(at)).copied().collect::<Vec<u64>>());
    let (frames, depth) = cut(frames, stack);
    let missing = is_deep && found.is_empty();
    (frames, depth.or(missing.then_some(Cut::NoFramePointers)))
}

fn cut(mut frames: Vec<u64>, stack: &RawStack) -> (Vec<u64>, Option<Cut>) {
    let is_cut = !stack.found_all || frames.len() > MOST;
    frames.truncate(MOST);
    (frames, is_cut.then_some(Cut::Depth))
}

/// What calls a function.
enum CallSite {
    Known(Position),
    /// Nothing: it is the outermost one of its thread.
    None,
    /// The tables or the copied words do not show it.
    Unknown,
}

/// The registers in a function.
#[derive(Clone, Copy, Debug)]
struct Position {
    ip: u64,
    sp: u64,
    fp: Option<u64>,
    lr: Option<u64>,
    /// `ip` is the address that a call returns to: it may be behind the end of the function.
    is_call: bool,
}

impl Position {
    fn caller(self, stack: &RawStack, code: &impl Code, context: &mut UnwindContext<usize>) -> CallSite {
        self.unwound(stack, code, context).unwrap_or(CallSite::Unknown)
    }

    /// `None` is [`CallSite::Unknown`].
    fn unwound(
        self,
        stack: &RawStack,
        code: &impl Code,
        context: &mut UnwindContext<usize>,
    ) -> Option<CallSite> {
        let (tables, address) = code.tables(self.ip - u64::from(self.is_call))?;
        let row = match &tables.index {
            Some(index) => index.table()?.unwind_info_for_address(
                &tables.frames,
                &tables.bases,
                context,
                address,
                UnwindSection::cie_from_offset,
            ),
            None => tables.frames.unwind_info_for_address(
                &tables.bases,
                context,
                address,
                UnwindSection::cie_from_offset,
            ),
        };
        let row = row.ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else { return None };
        let base = match *register {
            register if register == THIS.sp => self.sp,
            register if register == THIS.fp => self.fp?,
            _ => return None,
        };
        let cfa = base.checked_add_signed(*offset)?;
        // A register without a rule is kept.
        let restored = |rule: Option<RegisterRule<usize>>, now: Option<u64>| match rule {
            None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => now,
            Some(RegisterRule::Offset(offset)) => word(stack, cfa.checked_add_signed(offset)?),
            _ => None,
        };
        let lr = self.lr.filter(|&lr| lr != 0);
        let rule = row.register(THIS.return_address);
        if rule == Some(RegisterRule::Undefined) && lr.is_none() {
            return Some(CallSite::None);
        }
        let ip = restored(rule, lr)?;
        let fp = restored(row.register(THIS.fp), self.fp);
        // A stack grows down: a caller is above.
        let is_above = cfa > self.sp || lr.is_some() && cfa == self.sp;
        // The link register held the return address of the innermost function alone.
        let next = Self { ip: without_signature(ip), sp: cfa, fp, lr: None, is_call: true };
        is_above.then_some(CallSite::Known(next))
    }
}

/// An address without what pointer authentication puts in its upper bits on arm64.
const fn without_signature(address: u64) -> u64 {
    if cfg!(target_arch = "aarch64") { address & 0x007f_ffff_ffff_ffff } else { address }
}

/// The word at an address of the stack, if it was copied.
fn word(stack: &RawStack, address: u64) -> Option<u64> {
    let into = address.checked_sub(stack.sp)?;
    if into % 8 != 0 {
        return None;
    }
    stack.words.get(usize::try_from(into / 8).ok()?).copied()
}
