//! A consumer with a replica, for the scenarios: asks, applies, acks, compares.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use crate::compare::compare;
use crate::line::{Answer, Line};
use crate::object::{Tree, show};
use crate::product::Product;
use crate::replica::{Policy, Replica};

/// Answers taken until one is empty.
const ANSWERS_MAX: u32 = 4;

/// Whether an answer may be fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fresh {
    /// It is a failure.
    Never,
    /// It is as good as a right difference.
    Allowed,
}

/// A named consumer.
pub(crate) struct Consumer {
    name: String,
    replica: Option<Replica>,
    cursor: Option<String>,
    /// After a batch whose ack failed: the next answer tells whether it arrived.
    in_doubt: Option<(String, Replica)>,
    /// Fresh answers after the first.
    pub(crate) fresh: u64,
    pub(crate) answers: u64,
    /// Since the last check began.
    last: Vec<Line>,
}

impl Consumer {
    /// Adds it to the volume.
    pub(crate) fn add(product: &Product, name: &str) -> Result<Self> {
        product.add_consumer(name).map_err(|error| anyhow::anyhow!("consumer add: {error}"))?;
        Ok(Self {
            name: name.to_owned(),
            replica: None,
            cursor: None,
            in_doubt: None,
            fresh: 0,
            answers: 0,
            last: Vec::new(),
        })
    }

    /// The cursor that was acked last.
    pub(crate) fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// Takes one answer and acks it. The number of lines. An `Err` that is not about the contract: the tracker is away.
    pub(crate) fn turn(&mut self, product: &Product, tree: &Path, fresh: Fresh) -> Result<usize, Trouble> {
        let answer = product.changes(&self.name).map_err(away)?;
        self.take(product, tree, answer, fresh)
    }

    /// Applies and acks an answer that has been taken already.
    pub(crate) fn take(
        &mut self,
        product: &Product,
        tree: &Path,
        answer: Answer,
        fresh: Fresh,
    ) -> Result<usize, Trouble> {
        if let Some((cursor, replica)) = self.in_doubt.take()
            && answer.since.as_deref() == Some(&cursor[..])
        {
            (self.cursor, self.replica) = (Some(cursor), Some(replica));
        }
        if !answer.fresh && answer.since != self.cursor {
            return Err(Trouble::Wrong(format!(
                "what was acked is forgotten: the answer begins at {:?}, {:?} was acked",
                answer.since, self.cursor
            )));
        }
        let tree = Tree::open(tree).map_err(|error| Trouble::Away(error.to_string()))?;
        let next = match (&self.replica, answer.fresh) {
            (Some(held), false) => {
                let mut next = held.clone();
                next.apply(&tree, &answer.lines).map(|()| next)
            }
            (None, false) => return Err(Trouble::Wrong("the first answer is not fresh".to_owned())),
            (held, true) => {
                if held.is_some() {
                    if fresh == Fresh::Never {
                        return Err(Trouble::Wrong("a fresh answer without a reason".to_owned()));
                    }
                    self.fresh += 1;
                }
                Replica::fresh(&tree, Policy::Reference)
            }
        };
        let mut next = next.map_err(|error| Trouble::Away(format!("reading the tree: {error}")))?;
        next.reads.clear();
        self.answers += 1;
        self.last.extend(answer.lines.iter().cloned());
        match product.ack(&self.name, &answer.cursor) {
            Ok(()) => (self.cursor, self.replica) = (Some(answer.cursor), Some(next)),
            Err(error) => {
                self.in_doubt = Some((answer.cursor, next));
                return Err(away(error));
            }
        }
        Ok(answer.lines.len())
    }

    /// Nobody writes: takes answers until one is empty, and then the replica has to be the tree.
    pub(crate) fn check(&mut self, product: &Product, tree: &Path, fresh: Fresh) -> Result<()> {
        self.last.clear();
        for _ in 0..ANSWERS_MAX {
            match self.turn(product, tree, fresh) {
                Ok(0) => break,
                Ok(_) => {}
                Err(trouble) => bail!("{trouble}"),
            }
        }
        self.compare(tree)
    }

    /// The replica against the tree.
    pub(crate) fn compare(&self, tree: &Path) -> Result<()> {
        let everything = Tree::open(tree)?.everything()?;
        let Some(replica) = &self.replica else { bail!("there has been no answer") };
        let differences = compare(&everything, replica);
        ensure!(
            differences.is_empty(),
            "MISSED: {}; told: {:?}",
            differences
                .iter()
                .take(5)
                .map(|found| format!("{}: {}", show(&found.path), found.text))
                .collect::<Vec<_>>()
                .join("; "),
            self.last.iter().map(Line::show).collect::<Vec<_>>()
        );
        Ok(())
    }
}

/// Why a turn gave nothing.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The tracker or its mount does not answer.
    Away(String),
    /// Never right.
    Wrong(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Away(why) | Self::Wrong(why) => f.write_str(why),
        }
    }
}

fn away(error: crate::product::AskError) -> Trouble {
    let text = error.to_string();
    if text.contains("breaks the contract") { Trouble::Wrong(text) } else { Trouble::Away(text) }
}
