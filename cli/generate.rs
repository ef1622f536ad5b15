//! `pagoda generate [MODEL] --prompt TEXT`: one completion, or one answer with `--chat`.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use pagoda_backends::{ChatMessage, ChatPrompt, GenerateRequest, GenerationConfig, Prompt};

use super::{answer, context, flags::Flags, models, progress::Progress, sampling::Sampling, terminal};

/// Longest prompt read from stdin.
const MAX_STDIN_BYTES: u64 = 16 << 20;

/// Arguments of `pagoda generate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder, .gguf file, hub id or alias; none: the default model
    model: Option<String>,
    /// What to continue; none or `-`: read from stdin
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Put the prompt through the model's chat template, as a user's message
    #[arg(long)]
    chat: bool,
    /// System message; implies --chat
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    flags: Flags<false>,
}

/// Runs the command. Greedy unless a temperature is given, so that the same command prints the same text.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> Result<()> {
    let config = context::quiet_config(&arguments.flags.values, file)?;
    let greedy = |defaults| GenerationConfig { temperature: 0.0, ..defaults };
    arguments.sampling.over(greedy(GenerationConfig::default()))?;
    let text = prompt_text(arguments.prompt.as_deref())?;
    let target = models::target_for(&config, arguments.model.as_deref())?;
    let running = target.load(&context::hub()?, &config, &mut Progress::new())?;
    let prompt = match arguments.chat || arguments.system.is_some() {
        true => chat_prompt(arguments.system.as_deref(), &text),
        false => Prompt::Text { text, add_special_tokens: true },
    };
    let request = GenerateRequest { prompt, config: arguments.sampling.over(greedy(running.backend.default_config()))? };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(answer::show(&*running.backend, request))?;
    terminal::print("\n")?;
    terminal::note(&answer.summary());
    Ok(())
}

fn chat_prompt(system: Option<&str>, text: &str) -> Prompt {
    let message = |role: &str, content: &str| ChatMessage { role: role.into(), content: content.into(), ..ChatMessage::default() };
    let system = system.map(|text| message("system", text));
    let messages = system.into_iter().chain([message("user", text)]).collect();
    Prompt::Chat(ChatPrompt { messages, add_generation_prompt: true, ..ChatPrompt::default() })
}

fn prompt_text(argument: Option<&str>) -> Result<String> {
    match argument {
        Some(text) if text != "-" => Ok(text.to_string()),
        None if std::io::stdin().is_terminal() => bail!("no prompt: give --prompt TEXT or pipe text in"),
        _ => {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(MAX_STDIN_BYTES + 1).read_to_string(&mut text)?;
            ensure!(read as u64 <= MAX_STDIN_BYTES, "the prompt on stdin is longer than {MAX_STDIN_BYTES} bytes");
            Ok(text)
        }
    }
}
