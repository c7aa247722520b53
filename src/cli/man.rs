//! `kiln man`: manual pages, made of what `--help` says.

use std::fs;
use std::path::PathBuf;

use clap_mangen::{Man, generate_to};

use super::places::Places;
use super::{Call, Common, Exit, Failed};
use crate::base::{Code, Context, Result};

/// Where to.
#[derive(clap::Args)]
pub struct Args {
    /// Write kiln.1 and a page for every subcommand to DIR, instead of kiln.1 to standard output
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Writes the pages, or prints the first.
pub fn run(args: &Args, common: &Common) -> Result<Exit, Failed> {
    let pages = Call::shown().disable_help_subcommand(true);
    if let Some(folder) = &args.folder {
        Places::new(&common.cache, []).refuse_in_cache("the manual", folder)?;
        let written = fs::create_dir_all(folder).and_then(|()| generate_to(pages, folder));
        written.context(Code::CallWrite, || {
            format!("write manual pages to {}", folder.display())
        })?;
    } else {
        let mut page = vec![];
        let rendered = Man::new(pages).render(&mut page);
        rendered.context(Code::CallWrite, || "write the manual page".into())?;
        common.print_as_it_is(&String::from_utf8_lossy(&page));
    }
    Ok(Exit::Done)
}
