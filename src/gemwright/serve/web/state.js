// What the parts of the page share.

export const state = {
  models: [], // names that the server offers
  model: null, // facts about the chosen one, as /page/model has them
  conversations: new Map(), // by id
  current: null, // the conversation that is shown
};
