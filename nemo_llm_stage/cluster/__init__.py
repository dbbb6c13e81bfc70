"""The only room that imports ray: workers in actors, the Ray engine, the Dataset transform."""
