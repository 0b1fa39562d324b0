"""The small pages of a closed door, as HTML without scripts: why it is closed, and how to get in."""

from html import escape

from apps.shared.access import TOKEN, Answer

STATUS = {Answer.WELCOME: 200}  # all others: 403

_SHELL = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{title}</title>
<style>
:root {{ color-scheme: light dark; background: #ffffff; color: #0f1715; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 12vh auto 0; padding: 0 1.25rem; }}
h1 {{ font-size: 1.35rem; }}
form {{ display: flex; gap: 0.5rem; margin: 1.25rem 0; }}
input, button {{ font: inherit; padding: 0.5rem 1rem; border: 1px solid #8a9994; border-radius: 0.5rem; }}
input {{ flex: 1; min-width: 0; background: none; color: inherit; }}
::placeholder {{ color: inherit; opacity: 0.75; }}
button {{ border-color: #2a7362; background: #2a7362; color: #fff; }}
code {{ overflow-wrap: anywhere; }}
[role=alert] {{ color: #c2261b; }}
@media (prefers-color-scheme: dark) {{
    :root {{ background: #131817; color: #e6ecea; }}
    [role=alert] {{ color: #ff8a80; }}
}}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""
_ASK = """{problem}<p>This app answers only to the account that started it, and to everybody who has its token.</p>
<form method="get">
<input name="{name}" type="password" aria-label="Token" placeholder="Token" autocomplete="off" required autofocus>
<button>Open</button>
</form>
<p>The app printed its token when it started, at the end of the address. Until the app stops, the token is also in the
file <code>{file}</code>, which only the account that started the app can read.</p>
<p>After that, this browser needs no token until the app stops.</p>
"""


def page(answer: Answer, token_file: str, address: str, target: str = "") -> str:
    """The page for an answer other than SERVE. `target` is where a welcomed browser goes on."""
    if answer is Answer.WELCOME:
        # The page loads itself again: after a redirect of a link from elsewhere, a browser keeps a strict cookie back.
        link = f'<p><a href="{escape(target)}">Open the app</a></p>'
        head = f'<meta http-equiv="refresh" content="0; url={escape(target)}">\n'
        return _SHELL.format(title="Signed in", head=head, body=link)
    if answer is Answer.WRONG_HOST:
        body = f'<p>This app answers only at this machine\'s own names: open <a href="{address}">{address}</a>.</p>'
        return _SHELL.format(title="Wrong address", head="", body=body)
    if answer is Answer.FOREIGN:
        body = f'<p>Another page sent this request. Open <a href="{address}">{address}</a> instead.</p>'
        return _SHELL.format(title="Not from here", head="", body=body)
    problem = '<p role="alert">That is not the token.</p>\n' if answer is Answer.ASK_AGAIN else ""
    body = _ASK.format(problem=problem, name=TOKEN, file=escape(token_file))
    return _SHELL.format(title="This app needs its token", head="", body=body)
