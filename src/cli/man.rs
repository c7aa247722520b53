//! `kiln man`: manual pages, with the text of `--help`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap_mangen::{Man, generate_to};

use super::output_paths::OutputPaths;
use super::{Cli, Common, Exit, Failed};
use crate::base::{Code, Context, Result};

/// Where to write them.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Write kiln.1 and a page for each subcommand to DIR, instead of printing kiln.1
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Writes all pages, or prints the main page.
pub(super) fn run(args: &Args, common: &Common) -> Result<Exit, Failed> {
    let pages = Cli::public_command().disable_help_subcommand(true);
    if let Some(folder) = &args.folder {
        OutputPaths::new(&common.cache, []).check_outside_cache("the manual", folder)?;
        write_pages(pages, folder).context(Code::CallWrite, || {
            format!("write manual pages to {}", folder.display())
        })?;
    } else {
        let mut page = vec![];
        Man::new(pages)
            .render(&mut page)
            .context(Code::CallWrite, || "write the manual page".into())?;
        common.print_raw(&String::from_utf8_lossy(&page));
    }
    Ok(Exit::Done)
}

fn write_pages(pages: clap::Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    generate_to(pages, folder)
}
