"""The parts of the chat app, in the order in which a question passes through them. client_app.py serves the page.

page                  the script that Streamlit runs for every page: sidebar, conversation, chat input
address               which conversation a tab shows
settings_panel        the sidebar's settings become ChatSettings with one checked SamplingParams
saved_settings_panel  the same under a name, for later conversations
pending_actions       the question waits here until a script run carries it out
turns                 Chat.ask stores the question and starts its answers
store, schema, search the SQLite file with all conversations
context               which messages are sent, and how full the context window is
answering             one thread for each answer: sends the request, collects the text, saves it
openai_client         the server, if it is not TorchServe (torchserve_client/inference.py)
answer_panel          draws an answer while it is generated; figures and buttons
question_panel        draws a question and its editor
parallel_panel        draws simultaneous answers side by side
message_panel         the element of one message, with its script and style (message_element/)
markdown_html         a model's Markdown as HTML; markdown_rules, formulas, code_html
growing_text          the same while it is written: only the last block is made again
conversations_panel   the sidebar's list of conversations; export.py writes and reads their files
foreign_exports       reads the exports of ChatGPT and Open WebUI
sidebar_panel         the sidebar's style, and what only a script in the browser can do (sidebar_element/)
messages              what all of them share: messages, conversations, the tree of branches
"""
