"""The same turn, run by what people would use instead: each a small program as its own documentation suggests.

Each calls the provider with the official `openai` client, iterates over the events, and stores the answer in
PostgreSQL. None of them shows the answer while it is spoken, keeps the turns of a chat in order, chains or heals;
Turnkeeper does all of that in the figures that it is compared with.
"""
