/** Where the holder of the lock listens: the agent, or a command at work. Root only. */
export const CONTROL_SOCKET = '/run/bistable/agent.sock'
