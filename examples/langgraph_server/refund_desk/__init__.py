"""A refund desk for the LangGraph server."""
