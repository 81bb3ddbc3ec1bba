"""The addresses of the page, and what each answers: a whole page, parts of it, a picture, or one sentence.

Every change answers with all parts of the page as it then is. A refusal is one sentence of plain text with its status:
409 for an edit that was meant for an earlier version, 404 for what is not there, 422 for what cannot be done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tangentune.errors import InputError, TangentuneError
from tangentune.estimators import audit
from tangentune.workbench import tabs, views
from tangentune.workbench.answering import download, file_answer, html, sentence
from tangentune.workbench.choices import Choice, bulk, previewed
from tangentune.workbench.desk import Desk
from tangentune.workbench.edits import Edit
from tangentune.workbench.forms import check_version, edit_kind, picture_numbers, read_form, seen_version
from tangentune.workbench.originals import png
from tangentune.workbench.security import CSRF_HEADER, Gate, Guard
from tangentune.workbench.session import Session
from tangentune.workbench.unlabelled import Unlabelled
from tangentune.workbench.view import NEXT, View

_LONGEST = 200  # characters of a reason
_STATIC = Path(__file__).parent / "static"
_Change = Callable[[Session], object]  # does something; a text that it gives is said on the page


def create_app(desk: Desk, gate: Gate) -> Starlette:
    """The page of one desk, behind its gate.

    Args:
        desk: stays open; whoever opened it closes it.
        gate: names and secrets of the server.
    """
    page = Page(desk, gate)
    routes = [
        Route("/", page.whole),
        Route("/view", page.view),
        Route("/picture", page.picture),
        Route("/choices/{number:int}", page.choices),
        Route("/bulk", page.bulk, methods=["POST"]),
        Route("/picture/{number:int}.png", page.stored),
        Route("/original/{number:int}", page.original),
        Route("/layout.json", page.layout),
        Route("/edit", page.edit, methods=["POST"]),
        Route("/undo", page.undo, methods=["POST"]),
        Route("/redo", page.redo, methods=["POST"]),
        Route("/skip", page.skip, methods=["POST"]),
        Route("/unskip", page.unskip, methods=["POST"]),
        Route("/save", page.save, methods=["POST"]),
        Route("/recover", page.recover, methods=["POST"]),
        Route("/grouped", page.grouped, methods=["POST"]),
        Route("/new", page.take_in, methods=["POST"]),
        Route("/new/{number:int}.png", page.new_picture),
        Route("/new/{number:int}/add", page.add, methods=["POST"]),
        Route("/new/{number:int}/drop", page.put_away, methods=["POST"]),
        Route("/unlabelled/{number:int}.png", page.unlabelled),
        Route("/unlabelled/{number:int}/add", page.label, methods=["POST"]),
        Route("/unlabelled/{number:int}/skip", page.leave, methods=["POST"]),
        Route("/suggest", page.suggest, methods=["POST"]),
        Route("/rows", page.rows, methods=["POST"]),
        Route("/rows/events", page.rows_events),
        Route("/corrections.csv", page.corrections),
        Route("/log.jsonl", page.log),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, gate=gate)],
        exception_handlers={TangentuneError: sentence, OSError: sentence, MemoryError: sentence},
    )


class Page:
    """What the addresses answer; it remembers nothing that the desk does not."""

    def __init__(self, desk: Desk, gate: Gate):
        self.desk = desk
        self.gate = gate

    # -- looking ---------------------------------------------------------------------------------------------------

    async def whole(self, request: Request) -> Response:
        """The page."""
        shown = await self._shown(View.of(request.query_params))
        return html("page.html.j2", shown | {"csrf": self.gate.csrf, "csrf_header": CSRF_HEADER})

    async def view(self, request: Request) -> Response:
        """All its parts, of another view."""
        return html("update.html.j2", await self._shown(View.of(request.query_params)), swapped=True)

    async def picture(self, request: Request) -> Response:
        """The chosen picture alone, so that what is drawn on the map stays."""
        view = View.of(request.query_params)
        shown = await self.desk.ask(lambda session: views.alone(self.desk, session, view))
        return html("picture.html.j2", shown)

    async def choices(self, request: Request) -> Response:
        """What can be done about one picture, with what each would do; nothing, if an edit comes in between.

        Each is tried by itself, so that an edit need not wait for all of them, and the suggestion last: what was tried
        last costs nothing when it is taken.
        """
        number, given = request.path_params["number"], request.query_params
        shown = await self.desk.ask(lambda session: views.choosing(session, number, given.get("suggested", "")))
        version, tried = self.desk.session.version, list[Choice]()
        for choice in reversed(shown["choices"]):
            told = await self.desk.ask(lambda session, edit=choice.edit: _tried(session, edit, version))
            if told is None:
                return Response(status_code=204)
            tried.append(replace(choice, preview=told))
        shown |= {"choices": tried[::-1], "previewed": True, "keyed": given.get("tab") not in ("new", NEXT)}
        return html("choices.html.j2", shown)

    async def bulk(self, request: Request) -> Response:
        """The same of several pictures."""
        form = await read_form(request)
        numbers, label = picture_numbers(form.get("numbers", "")), form.get("bulk_label", form.get("to", ""))
        hint = "Draw around pictures, or choose some, to relabel or forget them together."
        shown = await self.desk.ask(
            lambda session: {"bulk": bulk(session, numbers, label, hint), "names": session.classes}
        )
        return html("bulk.html.j2", shown)

    async def stored(self, request: Request) -> Response:
        """A training picture as the model keeps it."""
        number = request.path_params["number"]
        try:
            pixels = await self.desk.ask(lambda session: session.picture(number))
        except InputError as error:
            return PlainTextResponse(str(error), 404)
        return Response(png(pixels), media_type="image/png")

    async def original(self, request: Request) -> Response:
        """A training picture at its own resolution."""
        number = request.path_params["number"]
        names = await self.desk.ask(lambda session: dict(zip(session.numbers, session.estimator.ids_, strict=True)))
        path = self.desk.originals.path(names.get(number, ""))
        return await file_answer(path)

    async def layout(self, request: Request) -> Response:
        """The map."""
        view = View.of(request.query_params)
        return JSONResponse(await self.desk.ask(lambda session: tabs.points(session, view)))

    async def corrections(self, request: Request) -> Response:
        """The labels as they are now, with what was changed, as a table that a fit can start from."""
        return download(await self.desk.ask(views.corrections), "text/csv", "corrections.csv")

    async def log(self, request: Request) -> Response:
        """The sealed log of every edit."""
        lines = await self.desk.ask(lambda session: audit.dump(session.estimator.edits_))
        return download(lines, "application/x-ndjson", "audit.jsonl")

    # -- changing --------------------------------------------------------------------------------------------------

    async def edit(self, request: Request) -> Response:
        """Relabel, forget, or keep one picture or several."""
        form = await read_form(request)
        numbers, kind = picture_numbers(form.get("numbers", "")), form.get("kind", "")
        label = form.get("to") if kind == "relabel" else None
        edit = Edit(edit_kind(kind), numbers, label, why=form.get("why", "").strip()[:_LONGEST])
        return await self._changed(form, lambda session: session.take(edit, seen_version(form)), numbers)

    async def undo(self, request: Request) -> Response:
        """Take the last edit back, and look at its picture again."""
        form = await read_form(request)
        return await self._back(form, [step for step in await self._steps() if step.done], Session.undo)

    async def redo(self, request: Request) -> Response:
        """Do the last undone edit again."""
        form = await read_form(request)
        return await self._back(form, [step for step in await self._steps() if not step.done][:1], Session.redo)

    async def skip(self, request: Request) -> Response:
        """Leave a picture out of the suspects until it is asked for again; nothing of the model changes."""
        form = await read_form(request)
        numbers = picture_numbers(form.get("number", ""))
        return await self._changed(form, lambda _: self.desk.skipped.update(numbers), numbers)

    async def unskip(self, request: Request) -> Response:
        """Show what was skipped again."""
        return await self._changed(await read_form(request), lambda _: self.desk.skipped.clear())

    async def save(self, request: Request) -> Response:
        """Write the model."""
        form = await read_form(request)

        def change(session: Session) -> str:
            check_version(session, form)
            count = session.unsaved
            session.save()
            return f"Saved: the model now stands on {count} edit{'s' if count != 1 else ''} more."

        return await self._changed(form, change)

    async def recover(self, request: Request) -> Response:
        """Take the edits of a session that ended before it saved, or drop them."""
        form = await read_form(request)

        def change(session: Session) -> str:
            pending = session.pending()
            if pending is None:
                return "There is nothing to take again."
            if form.get("take") == "yes":
                session.replay()
                return f"Taken again: {pending.edits} edit{'s' if pending.edits != 1 else ''}, not yet saved."
            session.discard()
            return "Dropped."

        return await self._changed(form, change)

    async def grouped(self, request: Request) -> Response:
        """A table of groups, its text as it is; it stays until another one comes."""
        name = unquote(request.headers.get("x-name", "the table"))
        try:
            text = (await request.body()).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"{name} is not UTF-8 text; save it as UTF-8") from None
        self.desk.table = tabs.group_table(text, name, unquote(request.headers.get("x-column", "")) or "group")
        return JSONResponse({"pictures": len(self.desk.table)})

    async def take_in(self, request: Request) -> Response:
        """A new picture, its bytes as they are, its name in a header."""
        content = await request.body()
        name = unquote(request.headers.get("x-name", "picture"))
        one = await run_in_threadpool(self.desk.tray.put, name, content)
        return JSONResponse({"number": one.number})

    async def new_picture(self, request: Request) -> Response:
        """A new picture as it was dropped."""
        return await file_answer(self.desk.tray.get(request.path_params["number"]).path)

    async def add(self, request: Request) -> Response:
        """Make a new picture one of the model's, with a label."""
        form = await read_form(request)
        one, (label, new) = self.desk.tray.get(request.path_params["number"]), _label(form)

        def change(session: Session) -> str:
            _known(session, label, new)
            session.add(one.pictures, label, new_class=new, version=seen_version(form))
            self.desk.tray.joined(one.number, max(session.numbers))
            return f"{one.name} is one of the model's pictures now, labelled {label}."

        return await self._changed(form, change)

    async def put_away(self, request: Request) -> Response:
        """Take a new picture off the page."""
        form = await read_form(request)
        self.desk.tray.remove(request.path_params["number"])
        return await self._changed(form, lambda _: None)

    async def unlabelled(self, request: Request) -> Response:
        """An unlabelled picture: its file, or what was read of it."""
        number, pool = request.path_params["number"], self._pool()
        path = await self.desk.ask(lambda _: pool.path(number))
        if path is not None:
            return await file_answer(path)
        return Response(png(pool.one(number).pixels[0].numpy().transpose(1, 2, 0)), media_type="image/png")

    async def rows(self, request: Request) -> Response:
        """Begin to write the rows of the training pictures beside the model."""
        return await self._changed(await read_form(request), self.desk.rows.start)

    async def rows_events(self, _: Request) -> Response:
        """How far that is, as server-sent events."""
        return StreamingResponse(self.desk.rows.events(), media_type="text/event-stream")

    async def suggest(self, request: Request) -> Response:
        """Another batch of pictures that are worth a label."""
        return await self._changed(await read_form(request), self._pool().ask)

    async def label(self, request: Request) -> Response:
        """Make an unlabelled picture one of the model's."""
        form, number, pool = await read_form(request), request.path_params["number"], self._pool()
        label, new = _label(form)

        def change(session: Session) -> None:
            _known(session, label, new)
            session.add(pool.one(number), label, new_class=new, version=seen_version(form))
            pool.joined(number, max(session.numbers))

        return await self._changed(form, change)

    async def leave(self, request: Request) -> Response:
        """Leave an unlabelled picture out of this batch and the next ones."""
        number, pool = request.path_params["number"], self._pool()
        return await self._changed(await read_form(request), lambda _: pool.skipped.add(number))

    # -- inside ----------------------------------------------------------------------------------------------------

    def _pool(self) -> Unlabelled:
        if self.desk.unlabelled is None:
            raise InputError("no folder of unlabelled pictures was named; start with --unlabelled DIR")
        return self.desk.unlabelled

    async def _steps(self) -> list[Any]:
        return await self.desk.ask(lambda session: session.timeline())

    async def _back(self, form: dict[str, str], steps: list[Any], way: Callable[..., Any]) -> Response:
        numbers = steps[-1].edit.numbers if steps else ()
        chosen = {"number": str(numbers[0])} if len(numbers) == 1 else {}
        return await self._changed(form | chosen, lambda session: way(session, seen_version(form)))

    async def _changed(self, form: dict[str, str], change: _Change, moved_on: tuple[int, ...] = ()) -> Response:
        """All parts of the page after a change; where a list is gone through, at the next picture of it."""
        view = View.of(form)

        def ask(session: Session) -> dict[str, Any]:
            listed = view.tab == "suspects" and moved_on
            before = [row.number for row in views.suspects(self.desk, session, view)] if listed else []
            said, at = change(session), view
            if listed:
                after = [row.number for row in views.suspects(self.desk, session, view)]
                at = replace(view, number=views.following(before, moved_on, after))
            return views.whole(self.desk, session, at, said if isinstance(said, str) else "")

        return html("update.html.j2", await self.desk.ask(ask), swapped=True)

    async def _shown(self, view: View) -> dict[str, Any]:
        return await self.desk.ask(lambda session: views.whole(self.desk, session, view))


def _label(form: dict[str, str]) -> tuple[str, bool]:
    """The label that a picture is added with, and whether it may be a new class."""
    label, new = form.get("to", ""), form.get("new_class") == "yes"
    if not label.strip():
        raise InputError("the new picture needs a label")
    return (label.strip() if new else label), new


def _known(session: Session, label: str, new: bool) -> None:
    if not new and label not in session.classes:
        raise InputError(f"there is no class {label!r}; add it as a new class if you mean that")


def _tried(session: Session, edit: Edit | None, version: int) -> str | None:
    """What an edit would do, in words; None if the model is not of that version any more."""
    if session.version != version:
        return None
    return "" if edit is None else previewed(session, edit)
