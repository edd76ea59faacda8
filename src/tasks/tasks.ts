/** ECS task definitions on the local Docker engine. */
export { readTaskDefinition, TaskDefinitionError, type TaskDefinition } from './definition.ts';
export { connectEngine, EngineError, type Engine, type RegistryLogin } from './engine.ts';
export { isSameRegistry } from './image-name.ts';
export { createTask, type Task, type TaskEvent, type TaskOptions, type TaskOutcome } from './task.ts';
