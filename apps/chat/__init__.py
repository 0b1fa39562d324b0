"""The parts of the chat app (client_app.py), in the order in which a question passes through them.

settings_panel        the sidebar's settings become ChatSettings with one checked SamplingParams
pending_actions       the question waits here until a script run carries it out
turns                 Chat.ask stores the question and starts its answers
store, schema, search the SQLite file with all conversations
context               which messages are sent, and how full the context window is
answering             one thread for each answer: sends the request, collects the text, saves it
openai_client         the server, if it is not TorchServe (torchserve_client/inference.py)
answer_panel          draws an answer while it is generated; figures and buttons
question_panel        draws a question and its editor
parallel_panel        draws simultaneous answers side by side
markdown_text         a model's text as safe Markdown
conversations_panel   the sidebar's list of conversations; export.py writes and reads their files
messages              what all of them share: messages, conversations, the tree of branches
"""
