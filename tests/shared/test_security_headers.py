"""The policy of what a page may load, as text; test_walls_browser.py tries it in a browser."""

from apps.shared.security_headers import INDEX, content_security_policy, inline_script_hashes


def policy() -> dict[str, list[str]]:
    hashes = inline_script_hashes(INDEX.read_text())
    directives = (part.split() for part in content_security_policy("127.0.0.1:8501", hashes).split("; "))
    return {name: sources for name, *sources in directives}


def test_no_source_is_another_host() -> None:
    sources = {source for each in policy().values() for source in each}
    hosts = {source for source in sources if not source.startswith("'") and source not in ("data:", "blob:")}
    assert hosts == {"ws://127.0.0.1:8501", "wss://127.0.0.1:8501"}


def test_scripts_are_files_and_the_one_that_streamlit_has_in_its_page() -> None:
    scripts = policy()["script-src"]
    assert [source for source in scripts if source.startswith("'sha256-")] == inline_script_hashes(INDEX.read_text())
    assert len(inline_script_hashes(INDEX.read_text())) == 1
    assert not {"'unsafe-inline'", "'unsafe-eval'"} & set(scripts)


def test_hash_of_a_script_is_the_one_that_browsers_compute() -> None:
    assert inline_script_hashes("<script>alert(1)</script><script src='a.js'></script>") == [
        "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"
    ]
