//! The command line: `pagoda serve | chat | generate | pull | bench | doctor | estimate | quantize | eval`.
//!
//! Parses, resolves the configuration, starts logging and hands over to one file per command. Any error ends as one line on stderr.

mod answer;
mod bench;
mod chat;
mod context;
mod doctor;
mod estimate;
mod eval;
mod flags;
mod generate;
mod logging;
mod machine;
mod models;
mod progress;
mod pull;
mod quantize;
mod remote;
mod sampling;
mod serve;
mod terminal;
mod try_out;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

/// LLM inference engine and server: paged KV cache, continuous batching, Anthropic and OpenAI APIs.
#[derive(Parser)]
#[command(name = "pagoda", version, about, propagate_version = true, max_term_width = 120)]
struct Cli {
    /// Configuration file (TOML)
    #[arg(long, global = true, env = "PAGODA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve models over the Anthropic and OpenAI APIs
    Serve(serve::Arguments),
    /// Chat with a model on the terminal
    Chat(chat::Arguments),
    /// Continue a prompt
    Generate(generate::Arguments),
    /// Fetch a model into the cache
    Pull(pull::Arguments),
    /// Measure the embedded engine
    Bench(Box<bench::Arguments>),
    /// Show this machine, the configuration and what would run
    Doctor(doctor::Arguments),
    /// Show what a model would take, before anything is loaded
    Estimate(estimate::Arguments),
    /// Write a model in a quantised checkpoint format
    Quantize(quantize::Arguments),
    /// Measure a model on a text
    Eval(eval::Arguments),
}

/// Exit code of a wrong command line.
const USAGE: u8 = 2;

/// Exit code of a server whose engine died.
const ENGINE_ENDED: u8 = 3;

/// Longest wait for an engine to free its device, at the end of a command.
const DEVICE_FREED: Duration = Duration::from_secs(5);

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let started = Instant::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let file = cli.config.as_deref();
    let outcome = match cli.command {
        Command::Serve(arguments) => serve::run(&arguments, file),
        Command::Chat(arguments) => chat::run(&arguments, file),
        Command::Generate(arguments) => generate::run(&arguments, file),
        Command::Pull(arguments) => pull::run(&arguments, file),
        Command::Bench(arguments) => bench::run(&arguments, file, started),
        Command::Doctor(arguments) => doctor::run(&arguments, file),
        Command::Estimate(arguments) => estimate::run(&arguments, file),
        Command::Quantize(arguments) => quantize::run(&arguments, file),
        Command::Eval(arguments) => eval::run(&arguments, file),
    };
    // Nothing runs any more; what holds a device may be about to free it.
    pagoda_engine::core::live::wait_until_ended(DEVICE_FREED);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if terminal::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::error_line(&terminal::causes(&error));
            if error.is::<serve::EngineEnded>() { ExitCode::from(ENGINE_ENDED) } else { ExitCode::FAILURE }
        }
    }
}

/// Help and version go to stdout; a wrong command line is one line and exit code 2.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let text = error.render().to_string();
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // `pagoda` alone: the help is the message.
        let _ = error.print();
        return ExitCode::from(USAGE);
    }
    let first = text.split("\n\nUsage").next().unwrap_or_default().trim_start_matches("error: ");
    let first = first.split("\n\n  tip:").next().unwrap_or_default().split("\n\nFor more").next().unwrap_or_default();
    terminal::error_line(&format!("{} (see pagoda --help)", first.split_whitespace().collect::<Vec<_>>().join(" ")));
    ExitCode::from(USAGE)
}
