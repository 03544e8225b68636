"""The endpoints of models that pool: embeddings, classes, scores.

body ─▶ prompts, parameters ─▶ the engine, all side by side ─▶ arrays ─▶ numbers as the client wants them
"""
