//! `highwater consumer`: the named readers of a volume.

use std::path::PathBuf;

use clap::Subcommand;
use highwater_client::Volume;

use crate::exit::{Exit, Failure};
use crate::output::print_line;

/// Add, remove or list consumers: named readers whose cursor the tracker keeps.
///
/// A new consumer's first answer is fresh. One that is removed is forgotten. A
/// consumer that falls too far behind becomes fresh: it never holds the journal
/// up.
///
/// Example:
///   highwater consumer add /srv/data backup
///   highwater consumer list /srv/data
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add a consumer.
    Add {
        /// The tracked directory.
        dir: PathBuf,
        /// Its name: 1 to 64 letters, digits, '.', '_' or '-'.
        name: String,
    },
    /// Remove a consumer and its cursor.
    Remove {
        /// The tracked directory.
        dir: PathBuf,
        /// Its name.
        name: String,
    },
    /// Print each consumer and its cursor, or `-` if it has acked nothing yet.
    List {
        /// The tracked directory.
        dir: PathBuf,
    },
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    match &args.action {
        Action::Add { dir, name } => Volume::connect(dir)?.add_consumer(name)?,
        Action::Remove { dir, name } => Volume::connect(dir)?.remove_consumer(name)?,
        Action::List { dir } => {
            let consumers = Volume::connect(dir)?.consumers()?;
            let width = consumers.iter().map(|consumer| consumer.name.len()).max().unwrap_or(0);
            for consumer in &consumers {
                print_line(&format!(
                    "{:<width$}  {}",
                    consumer.name,
                    consumer.cursor.as_deref().unwrap_or("-")
                ))?;
            }
        }
    }
    Ok(Exit::Done)
}
