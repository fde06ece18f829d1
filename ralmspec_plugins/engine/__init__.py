"""Engines, which carry out the loop's work on threads, on asyncio or in virtual time."""
