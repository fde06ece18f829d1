"""Engines: carry out what the loop asks for, on threads, on asyncio or in virtual time."""
