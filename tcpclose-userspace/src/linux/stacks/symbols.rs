//! Names of functions, and their places in source files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Symbolized, Symbolizer};

use crate::linux::stacks::frames::{Cut, Frame, Stack};
use crate::linux::stacks::module::Module;
use crate::linux::stacks::process_files::ProcessFiles;

/// The most frames of a stack, inlined ones among them.
const MOST_FRAMES: usize = 256;
/// The longest name that is kept, bytes.
const LONGEST: usize = 512;

/// Names the frames of `stacks` that are in files. Inlined functions become frames of their own.
pub fn name(stacks: &mut [Stack], files: &ProcessFiles) {
    let none: [&Path; 0] = [];
    let symbolizer = Symbolizer::builder().enable_auto_reload(false).set_debug_dirs(Some(none)).build();
    let mut known: HashMap<(PathBuf, u64), Vec<Frame>> = HashMap::new();
    for stack in stacks {
        let frames = std::mem::take(&mut stack.frames);
        for frame in frames {
            let Some(module) = files.module(&frame) else {
                stack.frames.push(frame);
                continue;
            };
            let named = known
                .entry((module.path(), frame.offset))
                .or_insert_with(|| named(&symbolizer, module, &frame).unwrap_or_else(|| vec![frame.clone()]));
            stack.frames.extend_from_slice(named);
            if stack.frames.len() > MOST_FRAMES {
                stack.frames.truncate(MOST_FRAMES);
                stack.cut = Some(Cut::Depth);
                break;
            }
        }
    }
}

/// A frame's functions, the innermost first; `None` if no symbol is there.
fn named(symbolizer: &Symbolizer, module: &Module, frame: &Frame) -> Option<Vec<Frame>> {
    let address = module.address(frame.offset)?;
    let of_debug = module.debug.as_ref().and_then(|debug| {
        let debug_syms = debug.is_trusted || !debug.module.leads_elsewhere;
        looked_up(symbolizer, debug.module.path(), debug_syms, address, frame)
    });
    of_debug
        .or_else(|| looked_up(symbolizer, module.path(), !module.leads_elsewhere, address, frame))
        // What is wrong in debugging information does not make symbols wrong.
        .or_else(|| looked_up(symbolizer, module.path(), false, address, frame))
}

fn looked_up(
    symbolizer: &Symbolizer,
    path: PathBuf,
    debug_syms: bool,
    address: u64,
    frame: &Frame,
) -> Option<Vec<Frame>> {
    let mut elf = Elf::new(path);
    elf.debug_syms = debug_syms;
    let found = symbolizer.symbolize_single(&Source::from(elf), Input::VirtOffset(address));
    let Ok(Symbolized::Sym(symbol)) = found else { return None };
    // A symbol without a size may end anywhere before this.
    if symbol.name.is_empty() || symbol.size.is_none() && symbol.offset != 0 {
        return None;
    }
    let at = |name: &str, place: Option<&CodeInfo<'_>>, inlined: bool| Frame {
        function: Some(shortened(name)),
        file: place.map(|place| shortened(&place.to_path().to_string_lossy())),
        line: place.and_then(|place| place.line),
        inlined,
        ..frame.clone()
    };
    // The symbol's own place is where the first inlined function is called, and so on inwards.
    let mut frames = vec![at(&symbol.name, symbol.code_info.as_deref(), false)];
    frames.extend(symbol.inlined.iter().map(|inlined| at(&inlined.name, inlined.code_info.as_ref(), true)));
    frames.reverse();
    Some(frames)
}

/// A name, without what makes it too long.
pub fn shortened(text: &str) -> String {
    let end =
        text.char_indices().map(|(at, char)| at + char.len_utf8()).take_while(|end| *end <= LONGEST).last();
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}
