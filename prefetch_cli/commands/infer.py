"""The words of COMMAND -> the server that it starts, and the checkpoints that this one reads: pure.

The tables are in `launchers` and `syntaxes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.placement import EVERYTHING, Needs
from prefetch_cli.checkpoint.request import Pick, Reference, Request, Role
from prefetch_cli.commands import nodes
from prefetch_cli.commands.arguments import Named, parsed, read
from prefetch_cli.commands.launchers import Launch, unwrap
from prefetch_cli.commands.syntaxes import STARTS, Meaning, Start, Syntax

# Speculation without a model of its own, by vLLM's config/speculative.py.
_NO_DRAFTS = frozenset(("ngram", "[ngram]", "ngram_gpu", "suffix", "extract_hidden_states"))
_MOST_CHARACTERS = 60  # of a command, in an error


class Inferred(NamedTuple):
    """What a command says about the checkpoints that it reads."""

    server: Server  # AUTO: not one that we know
    environ: Mapping[str, str]  # as the server sees it
    references: tuple[Reference, ...] = ()  # none: see `problem`
    problem: str = ""  # what was found instead of a model
    notes: tuple[str, ...] = ()  # what was not understood
    needs: Needs = EVERYTHING  # of the model

    @property
    def model(self) -> Reference | None:
        """The model itself, without its tokenizer, draft and adapters."""
        return next((one for one in self.references if one.role is Role.MODEL), None)


def infer(words: Sequence[str], environ: Mapping[str, str]) -> Inferred:
    """Return what a command says about the checkpoints that it reads."""
    command = printable(" ".join(words))
    if len(command) > _MOST_CHARACTERS:
        command = f"{command[:_MOST_CHARACTERS]}..."
    launch = unwrap(words, environ)
    if launch is None:
        return Inferred(
            Server.AUTO, environ, problem=f"a command that is not understood: {command}"
        )
    known = [start for start in STARTS if _starts(start, launch)]
    if not known:
        return Inferred(Server.AUTO, environ, problem=f"no server that is known: {command}")
    server = known[0].syntax.server
    start, arguments = next(filter(None, (_behind(one, launch) for one in known)), (None, ()))
    if start is None:
        problem = f"a subcommand that starts no server: {command}"
        return Inferred(server, launch.environ, problem=problem)
    return _understood(start.syntax, arguments, launch, command)


def completed(request: Request, inferred: Inferred, revision: str | None) -> Request:
    """Return a request with what a command says, where the user says nothing.

    `revision` is the one that the user gives for the model.
    Where the user names a checkpoint, only the server counts, and, if it is the model that the
    command names too, that one's revision, load format and cache; and, if it is the only one, what
    this node needs of it.
    """
    server = inferred.server if request.server is Server.AUTO else request.server
    request = request._replace(server=server)
    model = inferred.model
    if not request.references and model is not None:
        chosen = model._replace(revision=revision or model.revision)
        return request._replace(
            references=tuple(
                _overruled(chosen if one is model else one, request) for one in inferred.references
            ),
            environ=inferred.environ,
            notes=inferred.notes,
            needs=inferred.needs if request.needs is None else request.needs,
        )
    if not request.references and server is not Server.AUTO:
        return request._replace(notes=(f"no checkpoint is warmed: found {inferred.problem}",))
    references = tuple(
        one if model is None or not _is_same(one, model) else _merged(one, model, request)
        for one in request.references
    )
    needs = request.needs
    if needs is None and model is not None and all(_is_same(one, model) for one in references):
        needs = inferred.needs
    if references == request.references and needs in (request.needs, EVERYTHING):
        return request
    return request._replace(references=references, environ=inferred.environ, needs=needs)


def _is_same(one: Reference, other: Reference) -> bool:
    return one.argument.rstrip("/") == other.argument.rstrip("/") and one.pick == other.pick


def _merged(one: Reference, model: Reference, request: Request) -> Reference:
    found = _overruled(model, request)
    revision = one.revision or found.revision
    return found._replace(argument=one.argument, revision=revision, inferred=False)


def _overruled(one: Reference, request: Request) -> Reference:
    """Return a reference less what the user gives for all of them."""
    if request.load_format is not LoadFormat.AUTO and one.load_format is not LoadFormat.AUTO:
        one = one._replace(load_format=None)
    return one if request.cache_dir is None else one._replace(cache_dir=None)


def _starts(start: Start, launch: Launch) -> bool:
    return launch.program in (start.modules if launch.module else start.programs)


def _behind(start: Start, launch: Launch) -> tuple[Start, tuple[str, ...]] | None:
    """Return the arguments behind the subcommand, None if it is another one."""
    arguments = launch.arguments
    if not start.subcommands:
        return start, arguments
    if arguments and arguments[0] in start.subcommands:
        return start, arguments[1:]
    return (start, arguments) if start.optional else None


def _understood(syntax: Syntax, arguments: Sequence[str], launch: Launch, command: str) -> Inferred:
    """Return what the arguments of a server say."""
    named = read(arguments, launch.environ, syntax)
    notes: list[str] = []
    config_file = named.one(Meaning.CONFIG_FILE)
    if config_file is not None:
        notes.append(
            f"COMMAND's options in {printable(config_file)} are not read: if it names a load "
            "format, a revision or further models, give CHECKPOINT and these options"
        )
    problem = ""
    references: tuple[Reference, ...] = ()
    try:
        references = tuple(_references(named, syntax, launch.environ))
    except ValueError as error:
        problem = f"{error}: {command}"
    if not problem and not any(one.role is Role.MODEL for one in references):
        problem = f"{_no_model(named, config_file, syntax)}: {command}"
    if launch.moved and not all(one.argument.startswith("/") for one in references):
        problem = f"a name that is relative to another working directory: {command}"
    return Inferred(
        syntax.server,
        launch.environ,
        () if problem else references,
        problem,
        tuple(notes),
        nodes.needs(named, syntax.server),
    )


def _no_model(named: Named, config_file: str | None, syntax: Syntax) -> str:
    """Return why no model was found."""
    if not syntax.options and not syntax.positionals:
        return "a server that loads the model that a request names"
    if config_file is not None:
        return f"a command whose options are in {printable(config_file)}, which is not read"
    if named.unclear and Meaning.MODEL in syntax.positionals:
        return f"words of which any may be the model ({listing(named.unclear)})"
    return "no model in the command"


def _references(named: Named, syntax: Syntax, environ: Mapping[str, str]) -> Iterator[Reference]:
    """Yield the checkpoints, in the order in which a server opens them.

    Raises ValueError, with what was found, where a load format is not known.
    """
    model = _model(named, syntax, environ)
    if model is None:
        return
    # Where only the model's revision is given, all servers use it for the tokenizer too.
    revision = named.one(Meaning.TOKENIZER_REVISION) or model.revision
    tokenizer = Reference(
        named.one(Meaning.TOKENIZER) or model.argument, revision, Role.TOKENIZER, inferred=True
    )
    if model.pick is None and not _is_same(tokenizer, model):
        yield tokenizer
    yield model
    projector = named.one(Meaning.PROJECTOR)
    if projector is not None:
        yield Reference(projector, inferred=True)
    draft = _draft(named, syntax, environ)
    if draft is not None and draft.argument not in _NO_DRAFTS and not _is_same(draft, model):
        yield draft
    for text in named.all(Meaning.LORA):
        # `--load-format` is about the model.
        yield Reference(_adapter(text), load_format=LoadFormat.AUTO, inferred=True)


def _model(named: Named, syntax: Syntax, environ: Mapping[str, str]) -> Reference | None:
    repo, model = named.one(Meaning.REPO), named.one(Meaning.MODEL)
    if repo is not None:  # it wins over a path
        projector = not (named.one(Meaning.PROJECTOR) or named.one(Meaning.NO_PROJECTOR))
        pick = Pick(named.one(Meaning.REPO_FILE), projector)
        return Reference(repo, cache_dir=_cache(syntax, environ), pick=pick, inferred=True)
    if model is None:
        return None
    return Reference(
        model,
        named.one(Meaning.REVISION),
        load_format=_format(named.one(Meaning.LOAD_FORMAT)),
        cache_dir=named.one(Meaning.CACHE_DIR),
        inferred=True,
    )


def _draft(named: Named, syntax: Syntax, environ: Mapping[str, str]) -> Reference | None:
    """Return the draft model; its load format is the model's unless it has its own."""
    repo = named.one(Meaning.DRAFT_REPO)
    if repo is not None:
        pick = Pick(projector=False)
        return Reference(repo, cache_dir=_cache(syntax, environ), pick=pick, inferred=True)
    given = _map(parsed(named.one(Meaning.DRAFT_CONFIG) or ""))
    config = {key.replace("-", "_"): value for key, value in given.items()}
    model = named.one(Meaning.DRAFT) or _text(config.get("model"))
    if model is None or config.get("method") in _NO_DRAFTS:
        return None
    load_format = named.one(Meaning.DRAFT_FORMAT) or _text(
        _map(config.get("draft_load_config")).get("load_format")
    )
    return Reference(
        model,
        named.one(Meaning.DRAFT_REVISION) or _text(config.get("revision")),
        load_format=_format(load_format or named.one(Meaning.LOAD_FORMAT)),
        cache_dir=named.one(Meaning.CACHE_DIR),
        inferred=True,
    )


def _cache(syntax: Syntax, environ: Mapping[str, str]) -> str | None:
    """Return the server's own cache, None where it is the hub's."""
    found = ((environ.get(variable), below) for variable, below in syntax.caches)
    return next((f"{value}/{below}" if below else value for value, below in found if value), None)


def _format(text: str | None) -> LoadFormat | None:
    """Return a load format, None where the server chooses; raises ValueError."""
    known = {one.value: one for one in LoadFormat if one is not LoadFormat.ALL}
    word = (text or LoadFormat.AUTO.value).lower()
    if word not in known:
        raise ValueError(f"a load format in it that is not known ({printable(word)})")
    return None if known[word] is LoadFormat.AUTO else known[word]


def _adapter(text: str) -> str:
    """Return the path of an adapter: `path`, `name=path`, or JSON."""
    record = _map(parsed(text))
    if record:
        return _text(record.get("path")) or _text(record.get("lora_path")) or text
    name, equals, path = text.partition("=")
    return path if equals else name


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
